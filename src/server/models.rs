//! The models a port answers as, and `GET /v1/models`.
//!
//! Both models of a pair are in memory anyway, so each can be asked alone: `NAME` is the pair,
//! `NAME-base` and `NAME-draft` its halves. A port may be pinned to one of them: then nothing else
//! exists there, and clients that ask for the first model of the list get the right one.

use super::errors::ApiError;
use super::{Port, json};
use crate::engine::Pair;
use crate::ids::Role;
use crate::policy::PolicyKind;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// Both, by a policy.
    Pair,
    /// One model, without steps.
    Alone(Role),
}

/// A name and what stands behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) who: Who,
    /// Who does what where a request does not say.
    pub(super) policy: PolicyKind,
}

/// All models of a pair: the pair itself first. Without a draft the name is the base's.
pub(super) fn of_pair(name: &str, pair: &Pair) -> Vec<Model> {
    let policy = pair.settings.tuned.as_ref().map(|tuned| tuned.policy).unwrap_or_default();
    let model = |suffix: &str, who| Model { name: format!("{name}{suffix}"), who, policy };
    let base = model("-base", Who::Alone(Role::Base));
    if pair.draft.is_none() {
        return vec![model("", Who::Alone(Role::Base)), base];
    }
    vec![model("", Who::Pair), base, model("-draft", Who::Alone(Role::Draft))]
}

/// The model of that name; the first where a request names none.
pub(super) fn find<'a>(models: &'a [Model], name: Option<&str>) -> Result<&'a Model, ApiError> {
    let Some(name) = name else {
        return models.first().ok_or_else(|| ApiError::no_model("", &[]));
    };
    models.iter().find(|m| m.name == name).ok_or_else(|| {
        let served: Vec<_> = models.iter().map(|m| m.name.as_str()).collect();
        ApiError::no_model(name, &served)
    })
}

fn object(model: &Model, port: &Port) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": port.shared.created_s,
        "owned_by": "forerun",
        "max_model_len": port.shared.engine.get().map(|e| e.max_model_len()),
    })
}

/// `GET /v1/models`.
pub(super) async fn list(State(port): State<Port>) -> Response {
    let data: Vec<_> = port.models.iter().map(|m| object(m, &port)).collect();
    json(StatusCode::OK, &json!({"object": "list", "data": data}))
}

/// `GET /v1/models/{name}`.
pub(super) async fn one(
    State(port): State<Port>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let model = find(&port.models, Some(&name))?;
    Ok(json(StatusCode::OK, &object(model, &port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_three_models_and_a_base_without_a_draft_is_one() {
        let names = |pair: &Pair| -> Vec<String> {
            of_pair("x", pair).into_iter().map(|m| m.name).collect()
        };
        let mut pair = Pair::tiny();
        assert_eq!(names(&pair), ["x", "x-base", "x-draft"]);
        pair.draft = None;
        let models = of_pair("x", &pair);
        assert!(models.iter().all(|m| m.who == Who::Alone(Role::Base)), "{models:?}");
    }
}
