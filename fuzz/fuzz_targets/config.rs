#![no_main]

libfuzzer_sys::fuzz_target!(init: mixse_fuzz::abort_on_panics(), |data: &[u8]| {
    (mixse_fuzz::input("config").run)(data);
});
