//! Every kernel compiles for the architectures that the project means, without a card. Skipped, with a word, where there is no
//! NVRTC.

use mixse_cuda::{compile::compile, kernels::KERNELS, library::NVRTC};

#[test]
fn every_kernel_compiles_for_every_architecture() {
    if let Err(e) = NVRTC.load() {
        println!("skipped: {e}");
        return;
    }
    for architecture in ["sm_80", "sm_90", "sm_120"] {
        for kernel in KERNELS {
            let cubin = compile(kernel, architecture).unwrap_or_else(|e| panic!("{e}"));
            assert!(cubin.starts_with(b"\x7fELF"), "{} for {architecture}", kernel.file);
            for function in kernel.functions() {
                let found = cubin.windows(function.len()).any(|bytes| bytes == function.as_bytes());
                assert!(found, "{function} is not in {} for {architecture}", kernel.file);
            }
        }
    }
    let refused = compile(&KERNELS[0], "sm_1").unwrap_err().to_string();
    assert!(refused.contains(KERNELS[0].file) && refused.contains("sm_1"), "{refused}");
}
