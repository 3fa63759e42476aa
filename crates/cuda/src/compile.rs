//! From a kernel's source to code for a card. NVRTC needs no card for it.

use std::ffi::{CString, c_char};
use std::ptr;

use cudarc::nvrtc::sys;

use crate::{Error, Result, kernels::Kernel, library::NVRTC};

/// What every kernel is compiled with, besides the architecture: no contraction is asked for or forbidden, no fast mathematics.
const OPTIONS: &[&str] = &["--std=c++17"];

/// Compiles a kernel for an architecture such as `sm_90`; returns a cubin.
///
/// # Errors
/// The compiler is not there, or it refuses the source.
pub fn compile(kernel: &Kernel, architecture: &str) -> Result<Vec<u8>> {
    NVRTC.load()?;
    // cudarc panics at the first call where its own search finds nothing.
    // SAFETY: asks whether a library can be loaded, and nothing of it.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Missing { name: NVRTC.name, package: NVRTC.package });
    }
    let mut program = Program(ptr::null_mut());
    let fail = |code: sys::nvrtcResult, log: String| Error::Compile {
        kernel: kernel.file,
        architecture: architecture.into(),
        code: format!("{code:?}"),
        log,
    };
    let check = |code: sys::nvrtcResult| match code {
        sys::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        other => Err(fail(other, String::new())),
    };
    let text = |text: &str| {
        CString::new(text).map_err(|e| fail(sys::nvrtcResult::NVRTC_ERROR_INVALID_INPUT, e.to_string()))
    };
    let (source, name) = (text(&kernel.source())?, text(kernel.file)?);
    // SAFETY: both strings end with a zero and outlive the call, which copies them; no headers are given.
    check(unsafe {
        sys::nvrtcCreateProgram(&mut program.0, source.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null())
    })?;
    let mut options = vec![text(&format!("--gpu-architecture={architecture}"))?];
    for option in OPTIONS {
        options.push(text(option)?);
    }
    let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    // SAFETY: as many options as said, which outlive the call.
    let code = unsafe { sys::nvrtcCompileProgram(program.0, pointers.len() as i32, pointers.as_ptr()) };
    if code != sys::nvrtcResult::NVRTC_SUCCESS {
        return Err(fail(code, program.log()));
    }
    let mut size = 0;
    // SAFETY: a compiled program, and a place for its size.
    check(unsafe { sys::nvrtcGetCUBINSize(program.0, &mut size) })?;
    let mut cubin = vec![0u8; size];
    // SAFETY: room for as many bytes as the program has just said.
    check(unsafe { sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()) })?;
    Ok(cubin)
}

/// A program of NVRTC's, or null.
struct Program(sys::nvrtcProgram);

impl Program {
    fn log(&self) -> String {
        let mut size = 0;
        // SAFETY: a program that exists, and a place for a size.
        if unsafe { sys::nvrtcGetProgramLogSize(self.0, &mut size) } != sys::nvrtcResult::NVRTC_SUCCESS {
            return String::new();
        }
        let mut log = vec![0u8; size];
        // SAFETY: room for as many bytes as the log has.
        let _ = unsafe { sys::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) };
        String::from_utf8_lossy(&log).trim_end_matches('\0').into()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made by `nvrtcCreateProgram` and destroyed once.
            let _ = unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
        }
    }
}
