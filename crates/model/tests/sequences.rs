//! Routers that decide once a sequence: from the prompt, for the whole answer, however the answer is computed.

#![allow(clippy::unwrap_used, reason = "a fault in a test's own support is a panic")]

mod tiny;

use std::{path::Path, sync::Arc};

use candle_core::Device;
use mixse_model::{
    decoder::{Decoder, Memory, Ragged, Session, Wanted},
    expert_set::ExpertSet,
    mixture::{Mixture, Routing},
    router::{GateConfig, Granularity, Router, RouterConfig, RouterInput},
};

fn mixture(model: &Path, decoder: &Decoder, input: RouterInput, shared: bool) -> Mixture {
    let experts = tiny::experts(model, decoder);
    let set = ExpertSet::new(&experts, &decoder.config, &Device::Cpu).unwrap();
    let gate = GateConfig { temperature: 0.05, ..GateConfig::default() };
    let config = RouterConfig { input, shared, granularity: Granularity::Sequence, gate };
    let router = Router::init(&config, &set.names, &decoder.config, 4, &Device::Cpu).unwrap();
    Mixture { experts: set, routing: Routing::Learned(router) }
}

const KINDS: [(RouterInput, bool); 4] = [
    (RouterInput::Block, true),
    (RouterInput::Block, false),
    (RouterInput::BaseLast, true),
    (RouterInput::Embedding, true),
];

/// Logits of every position of one sequence, computed at once.
fn whole(decoder: &Decoder, mixture: &Mixture, ids: &[u32], prompt: usize) -> Vec<f32> {
    let ragged = Arc::new(Ragged::with_prompts([(prompt, ids.len())]));
    let wanted = Wanted { experts: false, gates: false };
    let hidden = decoder.hidden(ids, &ragged, Some(mixture), Memory::Recompute, wanted).unwrap();
    decoder.logits(&hidden, &(0..ids.len()).collect::<Vec<_>>()).unwrap()
}

#[test]
fn a_decision_is_taken_at_the_prompt_and_kept() {
    tiny::each_case(|what, _, ids, model, portable| {
        let decoder = tiny::load(model, portable);
        let vocabulary = decoder.config.vocab_size;
        for (input, shared) in KINDS {
            let what = format!("{what}, {input:?}, shared {shared}");
            let mixture = mixture(model, &decoder, input, shared);
            let (prompt, other) = (7, &ids[3..9]);
            let want = whole(&decoder, &mixture, ids, prompt);

            let ragged = Arc::new(Ragged::with_prompts([(prompt, ids.len())]));
            for block in decoder.route(ids, &ragged, &mixture).unwrap() {
                let rows: Vec<&[f32]> = block.chunks_exact(3).collect();
                assert!(
                    rows.iter().all(|row| *row == rows[0]),
                    "{what}: all tokens of a sequence go one way"
                );
            }
            let elsewhere = whole(&decoder, &mixture, ids, 2);
            assert!(
                want.iter().zip(&elsewhere).any(|(a, b)| (a - b).abs() > 1e-4),
                "{what}: the prompt's length matters"
            );

            // The prompt, then token by token, beside another sequence that starts later.
            let mut session = Session::new(&decoder, Some(&mixture));
            let (a, b) = (session.start(), session.start());
            let mut got = Vec::new();
            let hidden = session.step(&[(a, &ids[..prompt])]).unwrap();
            got.extend(decoder.logits(&hidden, &(0..prompt).collect::<Vec<_>>()).unwrap());
            let mut of_other = Vec::new();
            let mut fork = None;
            for at in prompt..ids.len() {
                let token = &ids[at..=at];
                let hidden = match at - prompt {
                    1 => session.step(&[(b, other), (a, token)]).unwrap(),
                    _ => session.step(&[(a, token)]).unwrap(),
                };
                let rows = hidden.dim(0).unwrap();
                got.extend(decoder.logits(&hidden, &[rows - 1]).unwrap());
                if rows > 1 {
                    of_other = decoder.logits(&hidden, &(0..other.len()).collect::<Vec<_>>()).unwrap();
                    fork = Some((session.fork(a), at + 1));
                }
            }
            tiny::assert_close(&format!("{what}: token by token"), &got, &want);
            let alone = whole(&decoder, &mixture, other, other.len());
            tiny::assert_close(&format!("{what}: beside another"), &of_other, &alone);
            let (fork, at) = fork.unwrap();
            let hidden = session.step(&[(fork, &ids[at..])]).unwrap();
            let logits = decoder.logits(&hidden, &(0..ids.len() - at).collect::<Vec<_>>()).unwrap();
            tiny::assert_close(
                &format!("{what}: a fork keeps the decision"),
                &logits,
                &want[at * vocabulary..],
            );

            // The prompt and what follows it in one step, and a prompt in parts.
            let c = session.start();
            session.set_prompt(c, prompt);
            let hidden = session.step(&[(c, ids)]).unwrap();
            let logits = decoder.logits(&hidden, &(0..ids.len()).collect::<Vec<_>>()).unwrap();
            tiny::assert_close(&format!("{what}: with its prompt told"), &logits, &want);
            let d = session.start();
            session.set_prompt(d, prompt);
            let message = session.step(&[(d, &ids[..3])]).unwrap_err().to_string();
            assert!(message.contains("all of it"), "{message}");
        }
    });
}

#[test]
fn the_bodies_agree_on_sequences() {
    tiny::each_case(|what, _, ids, model, portable| {
        if portable {
            return;
        }
        let (fused, reference) = (tiny::load(model, false), tiny::load(model, true));
        for (input, shared) in KINDS {
            let mixture = mixture(model, &fused, input, shared);
            let (got, want) = (whole(&fused, &mixture, ids, 6), whole(&reference, &mixture, ids, 6));
            tiny::assert_close(&format!("{what}, {input:?}, shared {shared}"), &got, &want);
        }
    });
}
