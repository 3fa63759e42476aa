//! The keys of transformers 5.23's configuration classes, and what is done with each.

use super::Architecture;
use crate::keys::{Key, ignored, noted, only, used};

/// The keys that every architecture has (`PreTrainedConfig` and what all seven classes share).
pub(super) const COMMON: &[Key] = &[
    used("model_type"),
    used("vocab_size"),
    used("hidden_size"),
    used("intermediate_size"),
    used("num_hidden_layers"),
    used("num_attention_heads"),
    used("num_key_value_heads"),
    used("head_dim"),
    used("max_position_embeddings"),
    used("rms_norm_eps"),
    used("tie_word_embeddings"),
    used("rope_parameters"),
    used("rope_scaling"),
    used("rope_theta"),
    used("original_max_position_embeddings"),
    only("partial_rotary_factor", &["1"], "rotary embeddings cover the whole head"),
    noted("attention_dropout", &["0"], "attention is not dropped out while experts are trained"),
    only("quantization_config", &[], "quantised weights come from GGUF files"),
    only("compression_config", &[], "quantised weights come from GGUF files"),
    only("quantization", &[], "quantised weights come from GGUF files"),
    only("per_layer_config", &["{}"], "all blocks have the same sizes"),
    only("transformers_weights", &[], "weights are read from model.safetensors or its index"),
    only("is_encoder_decoder", &["false"], "there is a decoder only"),
    only("add_cross_attention", &["false"], "there is a decoder only"),
    only("pruned_heads", &["{}"], "all heads are there"),
    ignored("architectures"),
    ignored("transformers_version"),
    ignored("dtype"),
    ignored("torch_dtype"),
    ignored("output_hidden_states"),
    ignored("output_attentions"),
    ignored("return_dict"),
    ignored("use_return_dict"),
    ignored("chunk_size_feed_forward"),
    ignored("is_decoder"),
    ignored("tie_last_hidden_states"),
    ignored("id2label"),
    ignored("label2id"),
    ignored("num_labels"),
    ignored("problem_type"),
    ignored("finetuning_task"),
    ignored("task_specific_params"),
    ignored("initializer_range"),
    ignored("use_cache"),
    ignored("cache_implementation"),
    ignored("pad_token_id"),
    ignored("bos_token_id"),
    ignored("eos_token_id"),
    ignored("sep_token_id"),
    ignored("decoder_start_token_id"),
    ignored("tokenizer_class"),
    ignored("prefix"),
    ignored("name_or_path"),
    ignored("_name_or_path"),
    ignored("_commit_hash"),
    ignored("attn_implementation"),
    ignored("_attn_implementation"),
    ignored("_attn_implementation_autoset"),
    ignored("_attn_implementation_internal"),
    ignored("experts_implementation"),
    ignored("_experts_implementation_internal"),
    ignored("torchscript"),
    ignored("use_bfloat16"),
    ignored("tf_legacy_loss"),
    ignored("transformers.js_config"),
    // Parameters of generation that old files keep here; transformers drops them.
    ignored("max_length"),
    ignored("min_length"),
    ignored("do_sample"),
    ignored("early_stopping"),
    ignored("num_beams"),
    ignored("num_beam_groups"),
    ignored("diversity_penalty"),
    ignored("temperature"),
    ignored("top_k"),
    ignored("top_p"),
    ignored("typical_p"),
    ignored("repetition_penalty"),
    ignored("encoder_repetition_penalty"),
    ignored("length_penalty"),
    ignored("no_repeat_ngram_size"),
    ignored("encoder_no_repeat_ngram_size"),
    ignored("bad_words_ids"),
    ignored("num_return_sequences"),
    ignored("output_scores"),
    ignored("return_dict_in_generate"),
    ignored("forced_bos_token_id"),
    ignored("forced_eos_token_id"),
    ignored("remove_invalid_values"),
    ignored("exponential_decay_length_penalty"),
    ignored("suppress_tokens"),
    ignored("begin_suppress_tokens"),
    ignored("epsilon_cutoff"),
    ignored("eta_cutoff"),
];

/// Inside `rope_parameters` and `rope_scaling`.
pub(super) const ROPE: &[Key] = &[
    used("rope_type"),
    used("type"),
    used("rope_theta"),
    used("factor"),
    used("low_freq_factor"),
    used("high_freq_factor"),
    used("original_max_position_embeddings"),
    only("partial_rotary_factor", &["1"], "rotary embeddings cover the whole head"),
    // These belong to kinds that are refused; transformers ignores them with the others.
    ignored("attention_factor"),
    ignored("beta_fast"),
    ignored("beta_slow"),
    ignored("mscale"),
    ignored("mscale_all_dim"),
    ignored("truncate"),
    ignored("short_factor"),
    ignored("long_factor"),
    ignored("finetuned"),
];

/// Around the text model of a Gemma 3 with a vision part.
pub(super) const VISION: &[Key] = &[
    used("text_config"),
    used("tie_word_embeddings"),
    ignored("vision_config"),
    ignored("mm_tokens_per_image"),
    ignored("boi_token_index"),
    ignored("eoi_token_index"),
    ignored("image_token_index"),
];

const LLAMA: &[Key] = &[
    used("hidden_act"),
    used("attention_bias"),
    only("mlp_bias", &["false"], "the MLP has no biases"),
    ignored("pretraining_tp"),
    ignored("rope_interleaved"),
    ignored("is_llama_config"),
];

const MISTRAL: &[Key] = &[
    used("hidden_act"),
    used("sliding_window"),
    only("layer_types", &[], "transformers reads such a file as Ministral"),
];

const QWEN2: &[Key] = &[
    used("hidden_act"),
    used("use_sliding_window"),
    used("sliding_window"),
    used("max_window_layers"),
    used("layer_types"),
];

const QWEN3: &[Key] = &[
    used("hidden_act"),
    used("attention_bias"),
    used("use_sliding_window"),
    used("sliding_window"),
    used("max_window_layers"),
    used("layer_types"),
];

const CAUSAL: Key = only("use_bidirectional_attention", &["false"], "attention is causal");

const GEMMA: &[Key] = &[
    used("hidden_act"),
    used("attention_bias"),
    only("hidden_activation", &["\"gelu_pytorch_tanh\""], "readers disagree about what else it means"),
    CAUSAL,
];

const GEMMA2: &[Key] = &[
    used("hidden_activation"),
    used("attention_bias"),
    used("query_pre_attn_scalar"),
    used("sliding_window"),
    used("layer_types"),
    used("final_logit_softcapping"),
    used("attn_logit_softcapping"),
    CAUSAL,
    ignored("hidden_act"),
    ignored("sliding_window_size"),
];

const GEMMA3: &[Key] = &[
    used("hidden_activation"),
    used("attention_bias"),
    used("query_pre_attn_scalar"),
    used("sliding_window"),
    used("sliding_window_pattern"),
    used("layer_types"),
    used("rope_local_base_freq"),
    used("final_logit_softcapping"),
    CAUSAL,
    ignored("attn_logit_softcapping"),
    ignored("hidden_act"),
    ignored("_sliding_window_pattern"),
];

/// The keys of one architecture beside [`COMMON`].
pub(super) fn of(architecture: Architecture) -> &'static [Key] {
    match architecture {
        Architecture::Llama => LLAMA,
        Architecture::Mistral => MISTRAL,
        Architecture::Qwen2 => QWEN2,
        Architecture::Qwen3 => QWEN3,
        Architecture::Gemma => GEMMA,
        Architecture::Gemma2 => GEMMA2,
        Architecture::Gemma3 => GEMMA3,
    }
}
