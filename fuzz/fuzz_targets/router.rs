#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (mixse_fuzz::input("router").run)(data);
});
