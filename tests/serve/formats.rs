//! Replies held to a schema, offered tools, priorities and limits of time.

use super::*;

/// One line of JSON and nothing of any length in it.
fn answer_schema() -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": {
        "type": "object", "additionalProperties": false, "required": ["answer", "unit"],
        "properties": {"answer": {"type": "integer", "minimum": 0, "maximum": 999},
            "unit": {"enum": ["apples", "coins"]}}}}})
}

fn is_an_answer(text: &str) -> bool {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
    let keys: Vec<_> = value.as_object().expect("an object").keys().collect();
    keys == ["answer", "unit"] && value["answer"].as_u64() < Some(1000)
}

#[test]
fn a_reply_follows_its_schema_whoever_writes_and_however_it_thinks() {
    let [at, ..] = shared();
    for extra in [
        json!({"model": "tiny-base", "separate_reasoning": true}),
        json!({"model": "tiny-draft", "separate_reasoning": true}),
        json!({"model": "tiny"}),
        json!({"forerun": {"threshold": 0, "answer_by": "draft"}}),
        json!({"forerun": {"threshold": 100}}),
        json!({"forerun": {"token_budget": 12}}),
        json!({"temperature": 0.7, "seed": 3}),
        json!({"temperature": 0.7, "seed": 3, "repetition_penalty": 1.05, "n": 3}),
    ] {
        let mut body = extra.clone();
        body["response_format"] = answer_schema();
        let reply = chat(at, body.clone());
        for choice in reply["choices"].as_array().expect("choices") {
            let content = choice["message"]["content"].as_str().expect("text");
            assert!(is_an_answer(content), "{extra}: {content}");
            assert_eq!(choice["finish_reason"], "stop", "{extra}");
            let thought = choice["message"]["reasoning_content"].as_str().expect("it thinks");
            assert!(!thought.is_empty() && !thought.contains('{'), "{extra}: {thought}");
        }
        assert_eq!(chat(at, body)["choices"][0]["message"], reply["choices"][0]["message"]);
    }
}

#[test]
fn a_schema_does_not_touch_the_thinking() {
    let [at, ..] = shared();
    for extra in [json!({}), json!({"model": "tiny-base", "separate_reasoning": true})] {
        let free = chat(at, extra.clone());
        let mut body = extra;
        body["response_format"] = answer_schema();
        let held = chat(at, body);
        let thought = |reply: &Value| reply["choices"][0]["message"]["reasoning_content"].clone();
        assert_eq!(thought(&held), thought(&free));
        assert_eq!(
            held["usage"]["completion_tokens_details"]["reasoning_tokens"],
            free["usage"]["completion_tokens_details"]["reasoning_tokens"]
        );
    }
}

#[test]
fn a_plain_completion_follows_its_schema_from_the_first_token() {
    let [at, ..] = shared();
    let body = json!({"model": "tiny-base", "prompt": ["3 + 4 =", "Tom"], "temperature": 0,
        "max_tokens": 60, "response_format": answer_schema()});
    let reply = ok(at, "/v1/completions", &body);
    for choice in reply["choices"].as_array().expect("choices") {
        assert!(is_an_answer(choice["text"].as_str().expect("text")), "{choice}");
    }
    let cut = json!({"model": "tiny-base", "prompt": "3 + 4 =", "temperature": 0,
        "max_tokens": 4, "response_format": answer_schema()});
    let cut = ok(at, "/v1/completions", &cut);
    assert!(cut["choices"][0]["text"].as_str().expect("text").starts_with('{'), "{cut}");
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
}

#[test]
fn the_pair_tells_of_every_token_what_the_base_makes_of_it() {
    let [at, ..] = shared();
    let plain = chat(at, json!({}));
    let told = chat(at, json!({"logprobs": true, "top_logprobs": 3}));
    assert_eq!(told["choices"][0]["message"], plain["choices"][0]["message"]);
    let entries = told["choices"][0]["logprobs"]["content"].as_array().expect("entries").clone();
    let details = &told["usage"]["completion_tokens_details"];
    let count = |name: &str| details[name].as_u64().expect("a number");
    let tokens = count("base_tokens") + count("draft_tokens") + count("injected_tokens");
    assert!(count("draft_tokens") > 0 && count("base_tokens") > 0, "{details}");
    assert_eq!(entries.len() as u64, tokens);
    // The base's own pass over the same text says the same.
    let read = ok(at, "/apply-template", &with_question(json!({})))["prompt"].clone();
    let mut ids: Vec<TokenId> = serde_json::from_value(
        ok(at, "/tokenize", &json!({"model": "tiny-base", "prompt": read}))["tokens"].clone(),
    )
    .expect("ids");
    let engine = Engine::start(EngineOptions::new(Pair::tiny())).expect("the pair starts");
    let mut request = Request::ask(QUESTION);
    request.sampling.temperature = Some(0.0);
    let reply = engine.answer(request).expect("a reply");
    assert_eq!(reply.ids.len(), entries.len());
    for entry in &entries {
        assert_eq!(entry["top_logprobs"].as_array().map(Vec::len), Some(3), "{entry}");
    }
    for (checked, (entry, id)) in entries.iter().zip(reply.ids).enumerate() {
        // Every fifth: each is a forward pass over the whole text.
        if checked % 5 == 0 {
            let row = logits(&ids);
            let z: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
            let exact = f64::from(row[id.index()]) - z.ln();
            let said = entry["logprob"].as_f64().expect("a number");
            assert!((said - exact).abs() < 1e-3, "token {checked}: {said} is not {exact}");
            let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let top = entry["top_logprobs"][0]["logprob"].as_f64().expect("a number");
            assert!((top - (f64::from(best) - z.ln())).abs() < 1e-3, "token {checked}");
        }
        ids.push(id);
    }
}

#[test]
fn offered_tools_change_nothing_for_a_template_that_does_not_know_them() {
    let [at, ..] = shared();
    let tool = json!({"type": "function", "function": {"name": "add", "description": "Adds.",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}}});
    for model in ["tiny", "tiny-base"] {
        let plain = chat(at, json!({"model": model}));
        for choice in ["auto", "none"] {
            let body = json!({"model": model, "tools": [tool], "tool_choice": choice});
            assert_eq!(chat(at, body)["choices"][0]["message"], plain["choices"][0]["message"]);
        }
    }
}

#[test]
fn who_waits_too_long_is_told_504() {
    let options = ServerOptions { listen: vec![port(None)], ..ServerOptions::default() };
    let at = start(&options, 1)[0];
    let connection = send(at, "POST", "/v1/completions", "", &endless("tiny-base", true));
    wait_until("running", || metric(at, "num_requests_running") == 1.0);
    let late = post(at, "/v1/chat/completions", &with_question(json!({"timeout_ms": 1})));
    assert_eq!((late.status, late.error().1.as_deref()), (504, Some("timeout")), "{}", late.body);
    // Who is in a hurry takes the place of the eight that are not.
    let first = chat(at, json!({"priority": -1, "max_tokens": 5}));
    assert_eq!(first["usage"]["completion_tokens"], 5);
    drop(connection);
}
