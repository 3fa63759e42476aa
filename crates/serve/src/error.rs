//! The error type of the crate.

use std::net::SocketAddr;

/// What can go wrong while a model is served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; is it in use? Choose another --port")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The engine's thread cannot be started.
    #[error("cannot start the engine: {0}")]
    Thread(std::io::Error),
    /// As many requests are running and waiting as are allowed.
    #[error("{waiting} requests are running or waiting already; try again later")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// The engine has stopped, after a fault that it reported.
    #[error("the engine has stopped; start the server again")]
    Stopped,
    /// The model refused a request or failed.
    #[error(transparent)]
    Model(#[from] mixse_model::Error),
    /// A prompt template is wrong, or the model has no chat template.
    #[error(transparent)]
    Template(#[from] mixse_selfmoe::error::Error),
    /// An API key that cannot be used.
    #[error("API key: {0}")]
    Key(String),
    /// A conversation that cannot be put to the model.
    #[error("{0}")]
    Conversation(String),
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
