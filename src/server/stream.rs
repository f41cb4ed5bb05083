//! Server-sent events: a reply as it comes.
//!
//! Each event is one JSON object behind `data:`, the last is `[DONE]`. A comment goes out when
//! nothing else does, so that proxies keep the connection. Dropping the stream, which is what a
//! closed connection does, drops the [`Replies`] and thereby cancels the request.

use super::generate::{Replies, Told};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde_json::Value;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

const KEEP_ALIVE_S: u64 = 15;

/// Turns what is told into events; `None` is the end of a reply that did not fail.
pub(super) type Writer = Box<dyn FnMut(Option<Told>) -> Vec<Value> + Send>;

struct Chunks {
    /// Absent once nothing more will come.
    replies: Option<Replies>,
    write: Writer,
    ready: VecDeque<String>,
}

/// A streamed response: `first` at once, then whatever `write` makes of `replies`.
pub(super) fn respond(replies: Replies, first: Vec<Value>, write: Writer) -> Response {
    let ready = first.iter().map(Value::to_string).collect();
    let chunks = Chunks { replies: Some(replies), write, ready };
    let alive = KeepAlive::new().interval(Duration::from_secs(KEEP_ALIVE_S));
    Sse::new(chunks).keep_alive(alive).into_response()
}

impl Chunks {
    fn hear(&mut self, told: Option<Told>) {
        if let Some(Told::Failed(error)) = told {
            self.ready.push_back(error.body().to_string());
            return self.end();
        }
        let last = told.is_none();
        self.ready.extend((self.write)(told).iter().map(Value::to_string));
        if last {
            self.end();
        }
    }

    fn end(&mut self) {
        self.ready.push_back("[DONE]".into());
        self.replies = None;
    }
}

impl Stream for Chunks {
    type Item = Result<Event, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let chunks = self.get_mut();
        loop {
            if let Some(data) = chunks.ready.pop_front() {
                return Poll::Ready(Some(Ok(Event::default().data(data))));
            }
            let Some(replies) = chunks.replies.as_mut() else { return Poll::Ready(None) };
            match replies.poll_next(context) {
                Poll::Ready(told) => chunks.hear(told),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
