//! Progress: something that moves on a terminal, plain lines elsewhere.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use indicatif::ProgressBar;

use crate::output::note;

fn on_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Work of unknown length.
#[derive(Debug)]
pub(crate) struct Spinner(Option<ProgressBar>);

impl Spinner {
    pub(crate) fn new(message: String) -> Self {
        if !on_terminal() {
            note(format_args!("{message} …"));
            return Self(None);
        }
        let bar = ProgressBar::new_spinner().with_message(message);
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(Some(bar))
    }

    pub(crate) fn finish(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}
