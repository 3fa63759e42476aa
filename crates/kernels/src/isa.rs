//! Which instructions the kernels use: detected once, forceable by `MIXSE_ISA` for tests and comparisons.

use std::cell::Cell;
use std::fmt;
use std::sync::OnceLock;

/// The environment variable that forces an instruction set.
pub const VARIABLE: &str = "MIXSE_ISA";

/// An instruction set that the kernels have code for.
///
/// Results differ between instruction sets by rounding; within one they depend on nothing but the operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust: whatever the compiler's baseline for the target offers. Without fused multiply-add on x86-64.
    Portable,
    /// NEON, which every 64-bit Arm processor has.
    Neon,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// [`Isa::Avx512`] and AMX tiles with bf16 products. Products with bf16 weights round the activations to bf16.
    Amx,
}

/// A request for an instruction set that cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// The name is none of ours.
    #[error("{VARIABLE}={0}: unknown; use portable, avx2, avx512, amx or neon, or unset it")]
    Unknown(String),
    /// This processor (or its kernel) does not have it.
    #[error("{VARIABLE}={0}: this processor does not offer it; the best here is {best}", best = best())]
    Unavailable(Isa),
}

impl Isa {
    /// All of them, slowest first.
    pub const ALL: [Isa; 5] = [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512, Isa::Amx];

    /// The name that [`VARIABLE`] takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        }
    }

    /// Whether this machine can run it.
    pub fn available(self) -> bool {
        self.detect().is_some()
    }

    /// The proof that this machine can run it, if it can.
    pub fn detect(self) -> Option<Available> {
        let found = match self {
            Isa::Portable => true,
            Isa::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => has_avx512(),
            #[cfg(target_arch = "x86_64")]
            // Tiles first, so that tests which emulate them reach their trial product on every processor.
            Isa::Amx => crate::gemm::amx::usable().is_some() && has_avx512(),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 | Isa::Amx => false,
        };
        found.then_some(Available(self))
    }
}

/// An instruction set that this machine was found to have.
///
/// Functions that execute its instructions take this instead of an [`Isa`]: only detection makes one, so that safe code
/// cannot reach an instruction that does not exist here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Available(Isa);

impl Available {
    /// Which it is.
    pub fn isa(self) -> Isa {
        self.0
    }

    /// The proof that tiles may be used, if this is the instruction set that has them.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn tiles(self) -> Option<crate::gemm::amx::HasTiles> {
        if self.0 == Isa::Amx { crate::gemm::amx::usable() } else { None }
    }
}

impl fmt::Display for Available {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// The best instruction set of this machine.
pub fn best() -> Available {
    static BEST: OnceLock<Available> = OnceLock::new();
    *BEST.get_or_init(|| Isa::ALL.into_iter().rev().find_map(Isa::detect).unwrap_or(Available(Isa::Portable)))
}

/// What [`VARIABLE`] asks for; `None` when it is unset or empty.
///
/// A program should call this once at its start and report the error: [`active`] ignores a request that cannot be met.
pub fn forced() -> Result<Option<Available>, IsaError> {
    match std::env::var(VARIABLE) {
        Ok(name) if !name.is_empty() => parse(&name).map(Some),
        _ => Ok(None),
    }
}

fn parse(name: &str) -> Result<Available, IsaError> {
    let isa = Isa::ALL
        .into_iter()
        .find(|isa| isa.name().eq_ignore_ascii_case(name))
        .ok_or_else(|| IsaError::Unknown(name.to_owned()))?;
    isa.detect().ok_or(IsaError::Unavailable(isa))
}

thread_local! {
    static OVERRIDE: Cell<Option<Available>> = const { Cell::new(None) };
}

/// The instruction set in use: the forced one if it is available, else the best.
pub fn active() -> Available {
    static ACTIVE: OnceLock<Available> = OnceLock::new();
    OVERRIDE.get().unwrap_or_else(|| *ACTIVE.get_or_init(|| forced().ok().flatten().unwrap_or_else(best)))
}

/// Runs `f` with another instruction set for the operations that the calling thread starts; for tests and benchmarks.
///
/// # Panics
/// If `isa` is not available here.
pub fn with<T>(isa: Isa, f: impl FnOnce() -> T) -> T {
    struct Restore(Option<Available>);
    impl Drop for Restore {
        fn drop(&mut self) {
            OVERRIDE.set(self.0);
        }
    }
    let found = isa.detect();
    assert!(found.is_some(), "{isa} is not available on this machine");
    let _restore = Restore(OVERRIDE.replace(found));
    f()
}

/// Compiles one plain Rust function body for every instruction set and calls the asked one.
///
/// `fn name(args) = body;` makes `fn name(isa, args)`. `body` must be `#[inline(always)]` and generic over
/// `const FMA: bool`, which says whether `f32::mul_add` is one instruction.
macro_rules! multiversion {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident;)*) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "the arguments are the body's and the instruction set")]
        $vis fn $name(isa: $crate::isa::Available, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                match isa.isa() {
                    // SAFETY: an `Available` is only made of what the processor has.
                    $crate::isa::Isa::Avx512 | $crate::isa::Isa::Amx => unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
                    $crate::isa::Isa::Portable | $crate::isa::Isa::Neon => $body::<false>($($arg),*),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                let _ = isa;
                $body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
            }
        }
    )*};
}
pub(crate) use multiversion;

/// `a * b + c`, in one rounding where the instruction set has it (`FMA`).
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |name: &str, expected: Result<Isa, IsaError>| {
            assert_eq!(parse(name).map(Available::isa), expected);
        };
        check("portable", Ok(Isa::Portable));
        check("PORTABLE", Ok(Isa::Portable));
        check("sse9", Err(IsaError::Unknown("sse9".into())));
        for isa in Isa::ALL {
            check(isa.name(), if isa.available() { Ok(isa) } else { Err(IsaError::Unavailable(isa)) });
        }
        assert!(best().isa().available());
    }

    #[test]
    fn override_is_restored() {
        let before = active();
        with(Isa::Portable, || assert_eq!(active().isa(), Isa::Portable));
        assert_eq!(active(), before);
    }
}
