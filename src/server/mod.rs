//! The OpenAI-compatible HTTP server: JSON outside, an engine handle inside.
//!
//! A handler turns a body into an [`crate::engine::Request`] (the pair answers) or a
//! [`crate::engine::Completion`] (one model continues), submits it and turns events into JSON.
//! Engines block and handlers do not: every reply has a thread of its own that waits for events and
//! a bounded channel to its handler. Invariant: whoever drops the receiving end, be it a closed
//! connection, cancels the request. Read next: `listen` for start and end, `generate` for the
//! bridge, `collect` for what text may be shown when.

mod auth;
mod chat;
mod collect;
mod completions;
mod errors;
mod fields;
mod generate;
mod listen;
mod metrics;
mod models;
mod openapi;
mod protocol;
mod stream;
mod texts;
mod tools;

pub use listen::{Listen, Server, ServerOptions};

use crate::engine::Engine;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post};
use errors::ApiError;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// What all ports have in common.
struct Shared {
    /// Absent while models are loaded.
    engine: OnceLock<Engine>,
    /// No new requests: the server is about to end.
    draining: AtomicBool,
    places: Arc<Places>,
    metrics: metrics::Metrics,
    api_key: Option<String>,
    body_bytes_max: usize,
    /// Web pages of these origins may ask; `*` is every one.
    cors_origins: Vec<HeaderValue>,
    /// Seconds since 1970.
    created_s: u64,
}

/// One port: what it shares and the models it answers as.
#[derive(Clone)]
struct Port {
    shared: Arc<Shared>,
    models: Arc<[models::Model]>,
}

impl Port {
    /// The engine, if it takes requests now.
    fn engine(&self) -> Result<&Engine, ApiError> {
        if self.shared.draining.load(Ordering::Relaxed) {
            let message = "the server is shutting down";
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "draining", message));
        }
        self.shared.engine.get().ok_or_else(|| {
            let message = "the models are still being loaded";
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "loading", message)
        })
    }
}

/// Counts the replies that are worked on or waited for, and refuses more than a limit.
struct Places {
    taken: AtomicUsize,
    limit: usize,
}

/// A reply's place; given back when it is dropped.
struct Place(Arc<Places>);

impl Places {
    /// `n` places, or none.
    fn take(self: &Arc<Self>, n: usize) -> Result<Vec<Place>, ApiError> {
        let free = |taken: usize| (taken + n <= self.limit).then_some(taken + n);
        match self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free) {
            Ok(_) => Ok((0..n).map(|_| Place(self.clone())).collect()),
            Err(taken) => Err(ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "queue_full",
                format!(
                    "{taken} of {} places are taken and this request needs {n}; try again later",
                    self.limit
                ),
            )),
        }
    }

    fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All routes of a port.
fn router(port: Port) -> Router {
    let limit = port.shared.body_bytes_max;
    let cors = cors(&port.shared.cors_origins);
    let router = Router::new()
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{name}", get(models::one))
        .route("/tokenize", post(texts::tokenize))
        .route("/detokenize", post(texts::detokenize))
        .route("/apply-template", post(texts::apply_template))
        .route("/metrics", get(metrics::show))
        .route("/openapi.json", get(openapi::show))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .route_layer(DefaultBodyLimit::max(limit))
        .layer(axum::middleware::from_fn_with_state(port.clone(), auth::check))
        .route("/health", get(health))
        .with_state(port);
    // Outside of the key: a browser asks whether it may ask without one.
    match cors {
        Some(cors) => router.layer(cors),
        None => router,
    }
}

fn cors(origins: &[HeaderValue]) -> Option<CorsLayer> {
    let origin = match origins {
        [] => return None,
        all if all.iter().any(|origin| origin == "*") => AllowOrigin::any(),
        some => AllowOrigin::list(some.iter().cloned()),
    };
    let cors = CorsLayer::new().allow_origin(origin).allow_methods([Method::GET, Method::POST]);
    Some(cors.allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE]))
}

/// `GET /health`: 200 while requests are taken, else 503.
async fn health(State(port): State<Port>) -> Result<Response, ApiError> {
    port.engine()?;
    Ok(json(StatusCode::OK, &serde_json::json!({"status": "ok"})))
}

async fn no_route() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "no_route", "there is nothing at this address")
}

async fn no_method() -> ApiError {
    let message = "this address does not take this method";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "no_method", message)
}

/// A body that arrived within its limit.
fn body(bytes: Result<Bytes, BytesRejection>) -> Result<Bytes, ApiError> {
    bytes.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            "the body is larger than this server takes (--max-body-bytes)",
        ),
        _ => ApiError::bad("the body did not arrive whole"),
    })
}

/// A JSON response.
fn json(status: StatusCode, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_refused_when_all_are_taken_and_come_back() {
        let places = Arc::new(Places { taken: AtomicUsize::new(0), limit: 3 });
        let two = places.take(2).unwrap();
        let refused = places.take(2).err().unwrap();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        let one = places.take(1).unwrap();
        assert_eq!(places.taken(), 3);
        drop((two, one));
        assert_eq!(places.taken(), 0);
    }
}
