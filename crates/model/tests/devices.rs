//! What other devices rely on, as far as the CPU can show it: with debug assertions, a portable pass that looks into a tensor
//! as if it were on the CPU panics.

#![allow(clippy::unwrap_used, reason = "a fault in a test's own support is a panic")]

mod tiny;

use std::sync::Arc;

use candle_core::Device;
use mixse_model::{
    decoder::{Decoder, LoadOptions, Memory, Precision, Ragged, Wanted},
    router::{Granularity, RouterConfig, RouterInput},
    weights::Checkpoint,
};

#[test]
fn both_bodies_show_the_same_router_inputs() {
    tiny::each_case(|what, _, ids, model, portable| {
        if portable {
            return;
        }
        let ragged = Arc::new(Ragged::whole([5, ids.len() - 5]));
        for granularity in [Granularity::Token, Granularity::Sequence] {
            for input in [RouterInput::Block, RouterInput::BaseLast, RouterInput::Embedding] {
                let config = RouterConfig { input, granularity, ..RouterConfig::default() };
                let read = |portable| {
                    let mut all = Vec::new();
                    let see = &mut |_: usize, h: &[f32]| all.extend_from_slice(h);
                    tiny::load(model, portable).router_inputs(ids, &ragged, &config, see).unwrap();
                    all
                };
                tiny::assert_close(&format!("{what}, {input:?}, {granularity:?}"), &read(true), &read(false));
            }
        }
    });
}

#[test]
fn portable_bodies_have_bf16_as_rounded_f32_and_no_integers() {
    tiny::each_case(|what, _, ids, model, portable| {
        if !portable {
            return;
        }
        let checkpoint = Checkpoint::open(model).unwrap();
        let load = |precision| {
            let options = LoadOptions { precision, device: Device::Cpu, portable };
            Decoder::load(&checkpoint, &options)
        };
        let logits = |precision| {
            let decoder = load(precision).unwrap();
            let (ragged, wanted) =
                (Arc::new(Ragged::whole([ids.len()])), Wanted { experts: false, gates: false });
            let hidden = decoder.hidden(ids, &ragged, None, Memory::Recompute, wanted).unwrap();
            assert!(decoder.logits(&hidden, &[]).unwrap().is_empty(), "{what}: no rows are no work");
            decoder.logits(&hidden, &[ids.len() - 1]).unwrap()
        };
        let (exact, rounded) = (logits(Precision::F32), logits(Precision::Bf16));
        let size = exact.iter().fold(0f32, |most, v| most.max(v.abs()));
        let most = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(most > 0.0 && most < 0.1 * size, "{what}: logits of {size} differ by {most}");
        for precision in [Precision::Int8, Precision::Int4] {
            let error = load(precision).unwrap_err().to_string();
            assert!(error.contains(precision.name()), "{what}: {error}");
        }
    });
}
