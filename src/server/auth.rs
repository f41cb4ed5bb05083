//! The API key: every route but `/health` asks for it where one is set.

use super::Port;
use super::errors::ApiError;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

/// Lets a request through that carries the key.
pub(super) async fn check(
    State(port): State<Port>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Some(key) = &port.shared.api_key {
        let given = request.headers().get(header::AUTHORIZATION).map_or(&b""[..], |v| v.as_bytes());
        let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
        if !equal(key.as_bytes(), given) {
            let message = "expected the header `Authorization: Bearer KEY` with this server's key";
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message));
        }
    }
    Ok(next.run(request).await)
}

/// Whether two keys are the same, in a time that depends only on the length of `given`.
fn equal(key: &[u8], given: &[u8]) -> bool {
    let mut difference = key.len() ^ given.len();
    for (i, byte) in given.iter().enumerate() {
        let own = if key.is_empty() { 0 } else { key[i % key.len()] };
        difference |= usize::from(own ^ byte);
    }
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_is_equal() {
        assert!(equal(b"secret", b"secret"));
        for other in [&b""[..], b"secre", b"secrets", b"Secret", b"secretsecret"] {
            assert!(!equal(b"secret", other), "{other:?}");
        }
    }
}
