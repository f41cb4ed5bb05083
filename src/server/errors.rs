//! Errors as OpenAI's clients read them: `{"error": {message, type, param, code}}` and a status.
//!
//! Three classes (see [`crate::error`]): what the request did wrong is a 4xx that names the field;
//! what the server has no room for is a 429 or 503 with `Retry-After`; what the engine did wrong is
//! a 500. Invariant: no path of this machine and no key appears in any of them.

use super::json;
use crate::error::{DeviceError, RequestError};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Seconds a client should wait before it asks a full server again.
const RETRY_AFTER_S: &str = "1";

/// A refused or failed request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
}

impl ApiError {
    /// A field of the request is wrong.
    pub(super) fn field(param: impl Into<String>, message: impl std::fmt::Display) -> Self {
        let param = param.into();
        let message = format!("{param}: {message}");
        Self { status: StatusCode::BAD_REQUEST, message, param: Some(param), code: None }
    }

    /// The request as a whole is wrong.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status: StatusCode::BAD_REQUEST, message, param: None, code: None }
    }

    /// Any other refusal.
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: Some(code) }
    }

    /// There is no such model on this port.
    pub(super) fn no_model(name: &str, served: &[&str]) -> Self {
        let message = format!("model: there is no {name:?} here; there are {}", served.join(", "));
        let param = Some("model".into());
        Self { status: StatusCode::NOT_FOUND, message, param, code: Some("model_not_found") }
    }

    /// What the engine says about a request that came in as `route` says: messages or a prompt.
    pub(super) fn engine(error: &RequestError, route: &'static str) -> Self {
        match error {
            RequestError::PromptTooLong { .. } => Self {
                code: Some("context_length_exceeded"),
                ..Self::field(route, error.to_string())
            },
            RequestError::Invalid { field, reason } => Self::field(request_field(field), reason),
            RequestError::Text(_) => Self::field(route, error),
            RequestError::TimedOut { .. } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", error.to_string())
            }
            RequestError::EngineStopped(_) | RequestError::Device(DeviceError::Lost(_)) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "engine_stopped", error.to_string())
            }
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "engine_error", error.to_string()),
        }
    }

    /// The HTTP status.
    #[cfg(test)]
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// The object of the body.
    pub(super) fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {
            "message": self.message,
            "type": kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json(self.status, &self.body());
        let wait = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        if wait.contains(&self.status) {
            let seconds = HeaderValue::from_static(RETRY_AFTER_S);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

/// The engine's name of a field as requests spell it.
fn request_field(field: &'static str) -> &'static str {
    match field {
        "threshold" => "forerun.threshold",
        "cutoff" => "forerun.cutoff",
        "token budget" => "forerun.token_budget",
        "step tokens" => "forerun.step_tokens",
        "step delimiter" => "forerun.step_delimiter",
        "max tokens" => "max_tokens",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_its_field_and_its_class() {
        let error = RequestError::Invalid { field: "token budget", reason: "too small".into() };
        let error = ApiError::engine(&error, "messages");
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
        let expected = json!({"error": {"message": "forerun.token_budget: too small",
            "type": "invalid_request_error", "param": "forerun.token_budget", "code": null}});
        assert_eq!(error.body(), expected);
        let lost = RequestError::Device(DeviceError::Lost("gone".into()));
        let lost = ApiError::engine(&lost, "messages");
        assert_eq!(lost.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(lost.into_response().headers().contains_key("retry-after"));
    }
}
