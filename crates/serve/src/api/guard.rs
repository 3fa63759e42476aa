//! Who may ask: hosts, origins and keys.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

use super::Fault;
use crate::error::{Error, Result};

/// Who may use the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// SHA-256 of the API keys; none: no key is asked for.
    keys: Vec<[u8; 32]>,
    /// Names beside this machine's own by which the server may be addressed.
    hosts: Vec<String>,
}

impl Access {
    /// `keys` as they are sent, or as `sha256:` and 64 hexadecimal digits; `hosts` without a port.
    ///
    /// # Errors
    /// A key is too short to keep anybody out, or no hash.
    pub fn new(keys: &[String], hosts: &[String]) -> Result<Self> {
        let keys = keys.iter().map(|key| hashed(key)).collect::<Result<_>>()?;
        Ok(Self { keys, hosts: hosts.iter().map(|host| host.to_ascii_lowercase()).collect() })
    }

    /// Whether a key is asked for.
    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Refuses a request of somebody who may not ask. The names `/health` and `/ready` are open.
    fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> std::result::Result<(), Fault> {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("\u{FFFD}"));
        // With a key, a page of another site gets nowhere; without one, a name that leads here may be anybody's.
        let host = text(header::HOST).or_else(|| uri.authority().map(|authority| authority.as_str()));
        if !self.has_keys() && !host.is_some_and(|host| self.is_own(host)) {
            let message = format!(
                "this server does not answer to the host {:?}; `mixse serve --allow-host NAME` names others",
                host.unwrap_or_default()
            );
            return Err(Fault::new(StatusCode::FORBIDDEN, message));
        }
        if let Some(origin) = text(header::ORIGIN) {
            let own = origin.split_once("://").is_some_and(|(scheme, host)| {
                matches!(scheme, "http" | "https") && (self.is_own(host) || text(header::HOST) == Some(host))
            });
            if !own {
                let message = format!("pages of {origin:?} may not use this server");
                return Err(Fault::new(StatusCode::FORBIDDEN, message));
            }
        }
        let open = matches!(uri.path(), "/health" | "/ready") && method == Method::GET;
        if self.has_keys() && !open && !self.knows(text(header::AUTHORIZATION).unwrap_or_default()) {
            let message = "give an API key, with the header `Authorization: Bearer KEY`";
            return Err(Fault::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key"));
        }
        Ok(())
    }

    /// A name or address of this machine, or one that was named; any port.
    fn is_own(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        let name = name.to_ascii_lowercase();
        // An address is no name, so that nobody else can make it lead here.
        name == "localhost"
            || name.ends_with(".localhost")
            || name.parse::<IpAddr>().is_ok()
            || self.hosts.contains(&name)
    }

    /// Compares hashes, all of them and to their ends: how long it takes says nothing about a key.
    fn knows(&self, authorization: &str) -> bool {
        let (scheme, key) = authorization.split_once(' ').unwrap_or_default();
        let given: [u8; 32] = Sha256::digest(key.trim().as_bytes()).into();
        let equal = |known: &[u8; 32]| known.iter().zip(&given).fold(0, |all, (a, b)| all | (a ^ b)) == 0;
        self.keys.iter().filter(|known| equal(known)).count() > 0 && scheme.eq_ignore_ascii_case("bearer")
    }
}

fn hashed(key: &str) -> Result<[u8; 32]> {
    if let Some(digits) = key.strip_prefix("sha256:") {
        let mut hash = [0; 32];
        let byte = |at: usize| u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok();
        for (at, place) in hash.iter_mut().enumerate() {
            *place = byte(at).ok_or_else(|| Error::Key("`sha256:` needs 64 hexadecimal digits".into()))?;
        }
        if digits.len() != 64 {
            return Err(Error::Key("`sha256:` needs 64 hexadecimal digits".into()));
        }
        return Ok(hash);
    }
    if key.len() < 16 || key.contains(char::is_whitespace) {
        return Err(Error::Key("a key has at least 16 characters and no white space".into()));
    }
    Ok(Sha256::digest(key.as_bytes()).into())
}

/// Stands before all routes.
pub(super) async fn guard(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    match access.check(request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(fault) => fault.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(access: &Access, path: &str, headers: &[(&'static str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let checked = access.check(&Method::GET, &path.parse().unwrap(), &map);
        checked.map_or_else(|fault| fault.status.as_u16(), |()| 200)
    }

    #[test]
    fn hosts_and_origins_are_this_machines() {
        let access = Access::new(&[], &["gpu-box.example".into()]).unwrap();
        let check = |headers: &[(&'static str, &str)], expected: u16| {
            assert_eq!(status(&access, "/v1/models", headers), expected, "{headers:?}");
        };
        for host in
            ["localhost", "localhost:8080", "127.0.0.1:9", "[::1]:8080", "10.0.0.3", "GPU-box.example:80"]
        {
            check(&[("host", host)], 200);
            check(&[("host", "localhost:1"), ("origin", &format!("http://{host}"))], 200);
        }
        for host in
            ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", ""]
        {
            check(&[("host", host)], 403);
            check(&[("host", "localhost"), ("origin", &format!("https://{host}"))], 403);
        }
        check(&[], 403);
        check(&[("host", "localhost"), ("origin", "null")], 403);
        check(&[("host", "localhost"), ("origin", "file://localhost")], 403);
    }

    #[test]
    fn keys_open_everything_but_health() {
        let key = "0123456789abcdef";
        let hash: String = Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        for given in [key.to_owned(), format!("sha256:{hash}")] {
            let access =
                Access::new(&["another key".replace(' ', "-") + "-long-enough", given], &[]).unwrap();
            let check = |path: &str, authorization: &str, expected: u16| {
                let headers = [("host", "evil.example"), ("authorization", authorization)];
                assert_eq!(status(&access, path, &headers), expected, "{path} {authorization}");
            };
            check("/v1/models", &format!("Bearer {key}"), 200);
            check("/v1/models", &format!("bearer  {key} "), 200);
            check("/v1/models", &format!("Basic {key}"), 401);
            check("/v1/models", &format!("Bearer {key}0"), 401);
            check("/v1/models", key, 401);
            check("/v1/models", "", 401);
            check("/", "", 401);
            check("/health", "", 200);
            check("/ready", "", 200);
        }
        for wrong in ["", "short", "with a space in it", "sha256:12", &format!("sha256:{hash}0"), "sha256:é"]
        {
            assert!(Access::new(&[wrong.to_owned()], &[]).is_err(), "{wrong}");
        }
    }
}
