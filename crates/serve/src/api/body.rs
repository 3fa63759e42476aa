//! Request bodies, received within bounds.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio_stream::StreamExt;

use super::Fault;

/// The largest request body: a prompt that fills any model's context stays far below it.
pub(super) const MAX_BODY: usize = 4 << 20;
/// As much of a body that is too large is read before it is refused: a server that answers and closes while its client still
/// sends makes the client's system drop the answer.
const MAX_DISCARDED: usize = 1 << 30;
/// A body is there within this time, and within the second one when the server is asked to stop.
const MAX_TIME: Duration = Duration::from_secs(30);
const MAX_TIME_AT_THE_END: Duration = Duration::from_secs(1);

/// The object in a body.
pub(super) async fn object(
    headers: &HeaderMap,
    body: Body,
    mut stopped: watch::Receiver<bool>,
) -> Result<Map<String, Value>, Fault> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    // A client that waits to be asked for its body need not send it.
    if announced.is_some_and(|length: u64| length > MAX_BODY as u64) && headers.contains_key(header::EXPECT) {
        return Err(too_large());
    }
    let ended = async {
        // A sender that is gone has nothing to say any more.
        if stopped.wait_for(|stopped| *stopped).await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(MAX_TIME_AT_THE_END).await;
    };
    let body = tokio::select! {
        body = whole(body) => body?,
        () = tokio::time::sleep(MAX_TIME) => {
            let message = format!("the body is not there after {} seconds", MAX_TIME.as_secs());
            return Err(Fault::new(StatusCode::REQUEST_TIMEOUT, message));
        }
        () = ended => {
            return Err(Fault::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping"));
        }
    };
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // A page of another site cannot send this type without being asked first.
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(Fault::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "send JSON, with the header `Content-Type: application/json`",
        ));
    }
    match serde_json::from_slice(&body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Fault::bad("the body is not a request: it must be a JSON object")),
        Err(e) => Err(Fault::bad(format!("the body is not a request: {e}"))),
    }
}

async fn whole(body: Body) -> Result<Vec<u8>, Fault> {
    let mut parts = body.into_data_stream();
    let (mut bytes, mut length) = (Vec::new(), 0);
    while length <= MAX_DISCARDED
        && let Some(part) = parts.next().await
    {
        let part = part.map_err(|e| Fault::bad(format!("the body does not arrive: {e}")))?;
        length += part.len();
        if length <= MAX_BODY {
            bytes.extend_from_slice(&part);
        } else {
            bytes = Vec::new();
        }
    }
    if length > MAX_BODY { Err(too_large()) } else { Ok(bytes) }
}

fn too_large() -> Fault {
    Fault::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {MAX_BODY} bytes"))
}
