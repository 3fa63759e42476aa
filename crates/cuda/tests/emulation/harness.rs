//! Kernels compiled by the system's C++ compiler and run on the processor.

use std::{ffi::c_void, path::Path, process::Command, sync::OnceLock};

use libloading::Library;
use mixse_cuda::kernels::{KERNELS, THREADS};

/// Values around every buffer that no kernel may touch, more than a block has threads. They are NaN, so that a result
/// shows whether they were read.
const GUARD: usize = 256;

/// An argument of a kernel.
pub(crate) enum Arg<'a> {
    In(&'a [f32]),
    Ids(&'a [u32]),
    Keys(&'a [u64]),
    Out(&'a mut Vec<f32>),
    Null,
    Int(i32),
    Unsigned(u32),
    Long(u64),
    Float(f32),
}

fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| {
            let compiler = ["c++", "g++", "clang++"].into_iter().find(|name| {
                Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success())
            })?;
            let folder = tempfile::tempdir().unwrap();
            let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("emulation/emulate.h");
            // A namespace a file, since they share what is put before them; macros know of none.
            let mut source = format!("#include {header:?}\n");
            for (at, kernel) in KERNELS.iter().enumerate() {
                let calls: String = kernel.functions().map(|name| format!("EMULATE({name})\n")).collect();
                source += &format!("namespace file_{at} {{\n{}\n{calls}}}\n", kernel.source());
            }
            let (file, object) = (folder.path().join("kernels.cpp"), folder.path().join("kernels.so"));
            std::fs::write(&file, source).unwrap();
            let output = Command::new(compiler)
                .args(["-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-o"])
                .args([&object, &file])
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            // SAFETY: it was just made from sources that start nothing.
            Some(unsafe { Library::new(&object) }.unwrap())
        })
        .as_ref()
}

/// True, with a word, where kernels cannot be run.
pub(crate) fn skipped() -> bool {
    let none = library().is_none();
    if none {
        println!("skipped: there is no C++ compiler (c++, g++ or clang++)");
    }
    none
}

/// Runs a kernel with its threads in both orders, which must give the same bits, and looks after the guards.
pub(crate) fn launch(name: &str, grid: [usize; 2], mut args: Vec<Arg<'_>>) {
    let forward = run(name, grid, &args, false);
    let backward = run(name, grid, &args, true);
    let mut outputs = forward.into_iter().zip(backward);
    for arg in &mut args {
        if let Arg::Out(values) = arg {
            let (one, other) = outputs.next().unwrap();
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&one), bits(&other), "{name} depends on the order of its threads");
            **values = one;
        }
    }
}

fn run(name: &str, grid: [usize; 2], args: &[Arg<'_>], backwards: bool) -> Vec<Vec<f32>> {
    type Emulate = unsafe extern "C" fn(*mut *mut c_void, *const u32, u32, i32) -> i32;
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    // A NaN of their own around outputs: one that was computed from an input's guards differs from it.
    let own = f32::from_bits(0x7fc1_2345);
    let guarded = |values: &[f32], nan: f32| [&[nan; GUARD], values, &[nan; GUARD]].concat();
    let mut buffers: Vec<Vec<f32>> = args
        .iter()
        .map(|arg| match arg {
            Arg::In(values) => guarded(values, f32::NAN),
            Arg::Out(values) => guarded(values, own),
            _ => Vec::new(),
        })
        .collect();
    let before = buffers.clone();
    // Each value in eight bytes of its own, as its type lies at their start on a little-endian machine.
    let mut values: Vec<u64> = args
        .iter()
        .zip(&mut buffers)
        .map(|(arg, buffer)| match *arg {
            Arg::In(_) | Arg::Out(_) => buffer[GUARD..].as_mut_ptr() as u64,
            Arg::Ids(ids) => ids.as_ptr() as u64,
            Arg::Keys(keys) => keys.as_ptr() as u64,
            Arg::Null => 0,
            Arg::Int(value) => u64::from(value as u32),
            Arg::Unsigned(value) => u64::from(value),
            Arg::Long(value) => value,
            Arg::Float(value) => u64::from(value.to_bits()),
        })
        .collect();
    let mut pointers: Vec<*mut c_void> =
        values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
    let grid = grid.map(|blocks| blocks as u32);
    let lock = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let code = library().unwrap();
    // SAFETY: the function has this type (`EMULATE`); the arguments are the kernel's, in its order, as the test gives them;
    // buffers outlive the call; the emulation's own state is used by one thread at a time.
    let code = unsafe {
        let emulate = code.get::<Emulate>(format!("emulate_{name}")).unwrap();
        emulate(pointers.as_mut_ptr(), grid.as_ptr(), THREADS, i32::from(backwards))
    };
    drop(lock);
    assert_eq!(code, 0, "{name}: threads wait at a barrier that others never reach");
    let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
    for ((arg, before), after) in args.iter().zip(&before).zip(&buffers) {
        let end = after.len().saturating_sub(GUARD);
        match arg {
            Arg::In(_) => assert!(same(before, after), "{name} writes to an input"),
            Arg::Out(_) => assert!(
                same(&before[..GUARD], &after[..GUARD]) && same(&before[end..], &after[end..]),
                "{name} writes outside an output"
            ),
            _ => {}
        }
    }
    args.iter()
        .zip(buffers)
        .filter(|(arg, _)| matches!(arg, Arg::Out(_)))
        .map(|(_, buffer)| buffer[GUARD..buffer.len() - GUARD].to_vec())
        .collect()
}

/// Blocks that cover `n` threads.
pub(crate) fn blocks(n: usize) -> usize {
    n.div_ceil(THREADS as usize)
}

/// Values in -1..1 that look random.
pub(crate) fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

pub(crate) fn near(what: &str, got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        assert!(error <= tolerance * expected.abs().max(1.0), "{what} at {i}: {got} for {expected}");
    }
}

/// Central differences of a function in f64.
pub(crate) fn gradient(x: &[f32], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut x = wide(x);
    (0..x.len())
        .map(|i| {
            let (old, step) = (x[i], 1e-5);
            x[i] = old + step;
            let above = f(&x);
            x[i] = old - step;
            let below = f(&x);
            x[i] = old;
            (above - below) / (2.0 * step)
        })
        .collect()
}

pub(crate) fn dot(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum()
}
