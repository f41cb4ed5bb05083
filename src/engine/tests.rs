//! The paper's pairs without their weights: prompts, judge and numbering on the conventions of QwQ
//! and R1-Distill (two templates, special tokens with other texts and ids, `</think>` moved).

use super::pair::{CATALOGUE, Origin, Pair, PairSettings, Thinking};
use super::prepare::{ModelText, Prepared};
use super::request::{PolicyOptions, Request};
use super::{JudgeText, ModelSource};
use crate::ids::{RequestId, Role, TokenId};
use crate::model::GenerationDefaults;
use crate::policy::PolicyKind;
use crate::text::{ChatTemplate, IdMap, SpecialRoles, SpecialText, Tokenizer};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const TOKENIZER: &str = include_str!("../assets/tiny/base/tokenizer.json");
const QWQ: &str = include_str!("../../tests/fixtures/text/templates/qwq.jinja");
const R1: &str = include_str!("../../tests/fixtures/text/templates/r1-distill.jinja");

/// What R1-Distill calls the ids that QwQ uses for its first five special tokens.
const R1_NAMES: [(&str, &str); 5] = [
    ("<|endoftext|>", "<｜end▁of▁sentence｜>"),
    ("<|im_start|>", "<｜User｜>"),
    ("<|im_end|>", "<｜Assistant｜>"),
    ("<think>", "<｜begin▁of▁sentence｜>"),
    ("</think>", "<think>"),
];

fn model_text(json: &str, template: &str, bos: &str, end_of_turn: &str) -> ModelText {
    let tokenizer = Tokenizer::from_json(json.as_bytes()).unwrap();
    let special = SpecialText { bos: Some(bos.into()), ..SpecialText::default() };
    let end_of_turn = tokenizer.id_of(end_of_turn).unwrap();
    ModelText {
        roles: SpecialRoles::with_tags(&tokenizer, vec![end_of_turn]),
        template: Some(ChatTemplate::new(template, special).unwrap()),
        defaults: GenerationDefaults::default(),
        tokenizer,
    }
}

fn qwq() -> ModelText {
    model_text(TOKENIZER, QWQ, "<|endoftext|>", "<|im_end|>")
}

fn r1() -> ModelText {
    let mut json: serde_json::Value = serde_json::from_str(TOKENIZER).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    for (qwen, r1) in R1_NAMES {
        if let Some(id) = vocab.remove(qwen) {
            vocab.insert(r1.into(), id);
        }
    }
    let added = json["added_tokens"].as_array_mut().unwrap();
    for token in added.iter_mut() {
        let names = R1_NAMES.iter().find(|n| token["content"] == n.0).unwrap();
        token["content"] = names.1.into();
    }
    let mut close = added[4].clone();
    close["id"] = 576.into();
    close["content"] = "</think>".into();
    added.push(close);
    model_text(&json.to_string(), R1, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
}

fn prepared(name: &str) -> Prepared {
    let source = ModelSource::Path("none".into());
    Prepared {
        pair: Pair {
            name: name.into(),
            base: source.clone(),
            draft: Some(source),
            settings: PairSettings::named(name).unwrap(),
        },
        texts: [Some(r1()), Some(qwq())],
        max_model_len: 4096,
        device: "none",
        draft_ahead: 0,
        lookahead_steps: 0,
        score_batch: 1,
        #[cfg(feature = "grammar")]
        grammars: std::sync::OnceLock::new(),
    }
}

#[test]
fn every_pair_of_the_catalogue_has_settings() {
    for entry in CATALOGUE {
        let settings = PairSettings::named(entry.name).unwrap();
        assert!(settings.threshold > 0.0, "{}", entry.name);
        let instruct = entry.name == "qwen2.5-coder";
        assert_eq!(settings.thinking == Thinking::None, instruct, "{}", entry.name);
        assert_eq!(entry.origin == Origin::Embedded, entry.name == "tiny");
    }
    assert!(PairSettings::named("nobody").is_none());
}

#[test]
fn each_model_of_the_papers_pair_reads_its_own_template() {
    let prepared = prepared("qwq-r1");
    let request = Request::ask("What is 2 + 2?");
    for (role, begin, end) in [
        (Role::Base, "<|im_start|>user\nWhat is 2 + 2?", "<|im_start|>assistant\n<think>\n"),
        (Role::Draft, "<｜begin▁of▁sentence｜><｜User｜>What is", "<｜Assistant｜><think>\n"),
    ] {
        let ids = prepared.render(&request, role).unwrap();
        let text = prepared.texts[role.index()].as_ref().unwrap().tokenizer.decode(&ids);
        assert!(text.starts_with(begin) && text.ends_with(end), "{text}");
    }
}

#[test]
fn the_judge_of_the_papers_pair_closes_the_turn_and_leaves_the_reply_open() {
    let prepared = prepared("qwq-r1");
    let text = JudgeText::built_in("turn").unwrap();
    let ids = prepared.judge_ids(&text, "\n\n").unwrap();
    let suffix = prepared.tokenizer().decode(&ids.suffix);
    assert!(suffix.starts_with("<|im_end|>\n<|im_start|>user\nLook only at the last step"));
    assert!(
        suffix.ends_with(
            "<|im_end|>\n<|im_start|>assistant\n<think>The last step deserves the score "
        )
    );
    assert_eq!(prepared.tokenizer().decode(&ids.labels), "0123456789");
    let open = prepared.tokenizer().decode(&ids.after_open_step);
    assert_eq!(open, format!("\n\n{suffix}"));
}

#[test]
fn special_tokens_of_the_papers_pair_are_mapped_by_role() {
    let (draft, base) = (r1(), qwq());
    let map = IdMap::build(&draft.tokenizer, &draft.roles, &base.tokenizer, &base.roles).unwrap();
    let id = |t: &ModelText, text| t.tokenizer.id_of(text).unwrap();
    for (of_draft, of_base) in
        [("<think>", "<think>"), ("</think>", "</think>"), ("<｜end▁of▁sentence｜>", "<|im_end|>")]
    {
        assert_eq!(map.to_base(id(&draft, of_draft)), Some(id(&base, of_base)), "{of_draft}");
        assert_eq!(map.to_draft(id(&base, of_base)), Some(id(&draft, of_draft)), "{of_base}");
    }
    assert_ne!(id(&draft, "</think>"), id(&base, "</think>"));
    assert_eq!(map.to_base(TokenId(100)), Some(TokenId(100)), "ordinary ids are the same");
    assert_eq!(map.to_base(id(&draft, "<｜User｜>")), None, "nothing stands for it");
}

#[test]
fn a_request_to_the_papers_pair_runs_with_the_papers_settings() {
    let prepared = prepared("qwq-r1");
    let request = Request {
        policy: PolicyKind::SpecReason,
        options: PolicyOptions::default(),
        ..Request::ask("What is 2 + 2?")
    };
    let (events, _receiver) = std::sync::mpsc::channel();
    let cancelled = Arc::new(AtomicBool::new(false));
    let s = prepared.submission(&request, RequestId(0), events, cancelled).unwrap().settings;
    assert_eq!((s.threshold, s.score.name(), s.judge.as_str()), (7.0, "greedy", "turn"));
    assert_eq!((s.temperature, s.top_p, s.step_tokens_max), (0.6, 0.95, 512));
    assert_eq!(s.token_budget_asked, Some(8192), "4096 tokens of context clamp it, visibly");
}
