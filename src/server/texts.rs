//! `POST /tokenize`, `/detokenize` and `/apply-template`: what a model makes of text, and back.
//!
//! Spellings of vLLM (`prompt`, `tokens`) and llama-server (`content`) are both understood. The
//! pair stands for its base here, with the pair's own instruction in its prompt.

use super::chat::{messages, render_options};
use super::completions::ids;
use super::errors::ApiError;
use super::fields::{self, Fields};
use super::models::{self, Who};
use super::{Port, body, json};
use crate::engine::{Engine, Prompt, Request};
use crate::error::RequestError;
use crate::ids::{Role, TokenId};
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

type Body = Result<Bytes, BytesRejection>;

/// What a route does with a request's fields.
type Work = fn(&Engine, Who, &Fields<'_>) -> Result<Value, ApiError>;

/// Runs `work` on a thread made for blocking: templates and tokenizers take their time.
async fn answer(port: Port, bytes: Body, work: Work) -> Result<Response, ApiError> {
    let map: Map<String, Value> = fields::parse(&body(bytes)?)?;
    port.engine()?;
    let run = move || {
        let fields = Fields::new(&map);
        let model = models::find(&port.models, fields.string("model")?)?;
        work(port.engine()?, model.who, &fields)
    };
    let value =
        tokio::task::spawn_blocking(run).await.map_err(|_| super::generate::incomplete())??;
    Ok(json(StatusCode::OK, &value))
}

/// `POST /tokenize`: `prompt`, `content` or `messages` to ids.
pub(super) async fn tokenize(State(port): State<Port>, bytes: Body) -> Result<Response, ApiError> {
    answer(port, bytes, |engine, who, fields| {
        let tokens = match text_of(fields)? {
            Some((name, text)) => {
                let tokens = tokenizer(engine, who)?.encode(text);
                tokens.map_err(|error| fields.error(name, error))?
            }
            None => rendered(engine, who, fields)?,
        };
        let max_model_len = engine.max_model_len();
        Ok(json!({"tokens": tokens, "count": tokens.len(), "max_model_len": max_model_len}))
    })
    .await
}

/// `POST /detokenize`: ids to text, control tokens included.
pub(super) async fn detokenize(
    State(port): State<Port>,
    bytes: Body,
) -> Result<Response, ApiError> {
    answer(port, bytes, |engine, who, fields| {
        let Some(items) = fields.array("tokens")? else {
            return Err(fields.error("tokens", "expected an array of token ids, got nothing"));
        };
        let tokenizer = tokenizer(engine, who)?;
        let ids = ids(items, "tokens")?;
        let vocabulary = tokenizer.vocab_len();
        if let Some(id) = ids.iter().find(|id| id.index() >= vocabulary) {
            let message = format!("token {id} is outside the vocabulary of {vocabulary} tokens");
            return Err(fields.error("tokens", message));
        }
        let text = tokenizer.decode(&ids);
        Ok(json!({"prompt": text, "content": text}))
    })
    .await
}

/// `POST /apply-template`: `messages` to the text a model would read.
pub(super) async fn apply_template(
    State(port): State<Port>,
    bytes: Body,
) -> Result<Response, ApiError> {
    answer(port, bytes, |engine, who, fields| {
        let ids = rendered(engine, who, fields)?;
        Ok(json!({"prompt": tokenizer(engine, who)?.decode(&ids)}))
    })
    .await
}

fn role(who: Who) -> Role {
    match who {
        Who::Pair => Role::Base,
        Who::Alone(role) => role,
    }
}

fn tokenizer(engine: &Engine, who: Who) -> Result<&crate::text::Tokenizer, ApiError> {
    engine.tokenizer(role(who)).ok_or_else(super::generate::incomplete)
}

/// The text to tokenise, under either name.
fn text_of<'a>(fields: &Fields<'a>) -> Result<Option<(&'static str, &'a str)>, ApiError> {
    if fields.bool("add_special_tokens")? == Some(true) || fields.bool("add_special")? == Some(true)
    {
        let message = "text is tokenised as it is; write out the tokens that begin it";
        return Err(fields.error("add_special_tokens", message));
    }
    for name in ["prompt", "content"] {
        if let Some(text) = fields.string(name)? {
            return Ok(Some((name, text)));
        }
    }
    Ok(None)
}

fn rendered(engine: &Engine, who: Who, fields: &Fields<'_>) -> Result<Vec<TokenId>, ApiError> {
    let messages = messages(fields)?;
    let options = render_options(fields)?;
    let ids: Result<_, RequestError> = match who {
        Who::Pair => {
            let variables = options.variables;
            engine.render(&Request { messages, variables, ..Request::ask("") }, Role::Base)
        }
        Who::Alone(role) => engine.prompt_ids(role, &Prompt::Chat { messages, options }),
    };
    ids.map_err(|error| ApiError::engine(&error, "messages"))
}
