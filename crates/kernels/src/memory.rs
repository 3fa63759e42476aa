//! Memory that the allocator keeps although nobody uses it.

/// Gives memory that was freed back to the system, where the allocator would keep it (glibc's does after the first large
/// block was freed). It costs about a millisecond for a gigabyte; call it between tasks, not between steps.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            /// glibc's; `pad` bytes are kept at the heap's top.
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: it may be called at any time from any thread.
        unsafe { malloc_trim(0) };
    }
}
