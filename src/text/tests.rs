//! Claims about text that need a real tokenizer or templates, against goldens from Python
//! (`tests/fixtures/text/make_goldens.py` made them).

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};

use super::*;
use crate::ids::TokenId;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text").join(name)
}

fn rows(name: &str) -> Vec<Json> {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn tiny_json() -> Json {
    serde_json::from_slice(&std::fs::read(fixture("tiny_tokenizer.json")).unwrap()).unwrap()
}

fn tokenizer(json: &Json) -> Tokenizer {
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

fn tiny() -> Tokenizer {
    tokenizer(&tiny_json())
}

fn ids(value: &Json) -> Vec<TokenId> {
    serde_json::from_value(value.clone()).unwrap()
}

fn id(tokenizer: &Tokenizer, text: &str) -> TokenId {
    tokenizer.id_of(text).unwrap()
}

mod encoding {
    use super::*;

    #[test]
    fn the_tiny_pairs_prompts_get_the_ids_it_was_trained_with() {
        let tiny = tiny();
        let prompts = rows("tiny_prompts.json");
        assert_eq!(prompts.len(), 8);
        for row in prompts {
            let text = row["text"].as_str().unwrap();
            assert_eq!(tiny.encode(text).unwrap(), ids(&row["ids"]), "{text}");
            assert_eq!(tiny.decode(&ids(&row["ids"])), text);
        }
    }

    #[test]
    fn ids_equal_those_of_the_python_package() {
        let tiny = tiny();
        for row in rows("tiny_ids.json") {
            let text = row["text"].as_str().unwrap();
            assert_eq!(tiny.encode(text).unwrap(), ids(&row["ids"]), "{text:?}");
            assert_eq!(tiny.decode(&ids(&row["ids"])), text);
        }
    }

    #[test]
    fn special_text_typed_by_a_user_stays_text_when_asked() {
        let tiny = tiny();
        let text = "a<|im_end|></think>";
        let special = tiny.encode(text).unwrap();
        assert!(special.contains(&TokenId(2)) && special.contains(&TokenId(4)));
        let ordinary = tiny.encode_ordinary(text).unwrap();
        assert!(ordinary.iter().all(|&id| !tiny.is_added(id)));
        assert_eq!(tiny.decode(&ordinary), text);
    }

    #[test]
    fn ids_are_found_by_text_and_padding_has_none() {
        let tiny = tiny();
        assert_eq!(id(&tiny, "7"), TokenId(27));
        assert_eq!(id(&tiny, "<think>"), TokenId(3));
        assert_eq!(tiny.token_bytes(id(&tiny, ".\n\n")), b".\n\n");
        assert_eq!(tiny.id_of("no such token"), None);
        assert_eq!(tiny.vocab_len(), 576);
        assert_eq!(tiny.token_bytes(TokenId(576)), b"");
        assert_eq!(tiny.token_bytes(TokenId(u32::MAX)), b"");
        assert_eq!(tiny.special_tokens().count(), 5);
        assert!(tiny.is_special(TokenId(4)) && !tiny.is_special(TokenId(20)));
    }

    proptest! {
        #[test]
        fn byte_level_ids_decode_to_their_text(
            text in "\\PC{0,40}|[ \\n\\r\\t'a-c1-3.!<|>]{0,40}",
        ) {
            let tiny = tiny();
            prop_assert_eq!(&tiny.decode(&tiny.encode(&text).unwrap()), &text);
            prop_assert_eq!(&tiny.decode(&tiny.encode_ordinary(&text).unwrap()), &text);
        }

        #[test]
        fn a_damaged_tokenizer_file_is_an_error_or_works(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            keep in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut bytes = std::fs::read(fixture("tiny_tokenizer.json")).unwrap();
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(keep) = keep {
                bytes.truncate(keep.index(bytes.len()));
            }
            if let Ok(tokenizer) = Tokenizer::from_json(&bytes) {
                let _ = tokenizer.encode("Hello 12.\n\n<think>");
                let _ = tokenizer.decode(&[TokenId(0), TokenId(300), TokenId(9999)]);
            }
        }
    }

    #[test]
    fn forged_tokenizers_are_refused_with_the_field_named() {
        let refuse = |edit: &dyn Fn(&mut Json), expected: &str| {
            let mut json = tiny_json();
            edit(&mut json);
            let error = Tokenizer::from_json(json.to_string().as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} does not mention {expected}");
        };
        refuse(&|json| json["model"]["vocab"]["zzz"] = 4_000_000_000_u32.into(), "highest id");
        refuse(&|json| json["model"]["type"] = "Unigram".into(), "supported: BPE");
        refuse(&|json| json["model"]["continuing_subword_prefix"] = "é".into(), "subword_prefix");
        refuse(&|json| json["model"]["dropout"] = 0.5.into(), "dropout");
        refuse(&|json| json["added_tokens"][4]["id"] = 70.into(), "</think>");
        refuse(
            &|json| {
                json["pre_tokenizer"] = Json::Null;
                json["decoder"] = Json::Null;
            },
            "ByteLevel",
        );
        refuse(&|json| json["model"]["merges"][0] = "Ġ nonesuch".into(), "nonesuch");
        assert!(Tokenizer::from_json(b"\xff\x00").is_err());
    }
}

mod comparing {
    use super::*;

    /// The tiny tokenizer with other added tokens, as R1-Distill differs from Qwen2.5.
    fn renamed() -> Json {
        let mut json = tiny_json();
        // `<|im_end|>` becomes another end of turn, the tags swap ids, one token is unknown.
        let texts = ["<|endoftext|>", "<|start|>", "<eos>", "</think>", "<think>"];
        let vocab = json["model"]["vocab"].as_object_mut().unwrap();
        vocab.retain(|_, id| id.as_u64().unwrap() > 4);
        for (id, text) in texts.iter().enumerate() {
            json["model"]["vocab"][*text] = id.into();
            json["added_tokens"][id]["content"] = (*text).into();
        }
        json
    }

    fn roles(tokenizer: &Tokenizer, ends: &[&str]) -> SpecialRoles {
        SpecialRoles::with_tags(tokenizer, ends.iter().map(|end| id(tokenizer, end)).collect())
    }

    #[test]
    fn a_tokenizer_maps_to_itself_unchanged() {
        let tiny = tiny();
        let roles = roles(&tiny, &["<|im_end|>", "<|endoftext|>"]);
        let map = IdMap::build(&tiny, &roles, &tiny, &roles).unwrap();
        assert!(map.is_identity());
        assert_eq!(map.to_base(TokenId(100)), Some(TokenId(100)));
        assert_eq!(map.to_base(TokenId(576)), None);
    }

    #[test]
    fn added_tokens_map_by_role_then_by_text() {
        let (base, draft) = (tiny(), tokenizer(&renamed()));
        let base_roles = roles(&base, &["<|im_end|>", "<|endoftext|>"]);
        let draft_roles = roles(&draft, &["<eos>"]);
        let map = IdMap::build(&draft, &draft_roles, &base, &base_roles).unwrap();
        assert!(!map.is_identity());
        let to_base = |text| map.to_base(id(&draft, text)).map(|at| base.token_bytes(at));
        assert_eq!(to_base("<think>"), Some(&b"<think>"[..]));
        assert_eq!(to_base("</think>"), Some(&b"</think>"[..]));
        assert_eq!(to_base("<eos>"), Some(&b"<|im_end|>"[..]));
        assert_eq!(to_base("<|start|>"), None);
        let to_draft = |text| map.to_draft(id(&base, text)).map(|at| draft.token_bytes(at));
        assert_eq!(to_draft("<|im_end|>"), Some(&b"<eos>"[..]));
        // Ends the base's turn, so it must end the draft's, though the draft has the same text.
        assert_eq!(to_draft("<|endoftext|>"), Some(&b"<eos>"[..]));
        assert_eq!(to_draft("<|im_start|>"), None);
        for at in 5..576 {
            assert_eq!(map.to_base(TokenId(at)), Some(TokenId(at)));
        }
    }

    #[test]
    fn a_close_tag_that_is_plain_text_in_one_model_is_unmapped() {
        let mut json = tiny_json();
        json["added_tokens"].as_array_mut().unwrap().truncate(3);
        let vocab = json["model"]["vocab"].as_object_mut().unwrap();
        vocab.retain(|_, id| !matches!(id.as_u64(), Some(3 | 4)));
        let draft = tokenizer(&json);
        let base = tiny();
        let draft_roles = roles(&draft, &["<|im_end|>"]);
        assert_eq!((draft_roles.think, draft_roles.close_think), (None, None));
        let base_roles = roles(&base, &["<|im_end|>"]);
        let map = IdMap::build(&draft, &draft_roles, &base, &base_roles).unwrap();
        assert_eq!(map.to_draft(TokenId(4)), None);
        assert!(!map.is_identity());
    }

    #[test]
    fn the_first_different_token_or_merge_is_named() {
        let mut json = tiny_json();
        let vocab = json["model"]["vocab"].as_object_mut().unwrap();
        let (plus, minus) = (vocab["+"].clone(), vocab["-"].clone());
        vocab.insert("+".to_owned(), minus);
        vocab.insert("-".to_owned(), plus.clone());
        let error = tiny().compare(&tokenizer(&json)).unwrap_err();
        assert_eq!(error, format!("token {plus}: \"+\" vs \"-\""));

        let mut json = tiny_json();
        let merges = json["model"]["merges"].as_array_mut().unwrap();
        merges.swap(7, 9);
        let error = tiny().compare(&tokenizer(&json)).unwrap_err();
        assert!(error.starts_with("merge 7: "), "{error}");

        let mut json = tiny_json();
        json["model"]["merges"].as_array_mut().unwrap().pop();
        let error = tiny().compare(&tokenizer(&json)).unwrap_err();
        assert!(error.starts_with("merge 314: ") && error.ends_with("vs nothing"), "{error}");
    }

    #[test]
    fn padding_of_the_vocabulary_is_no_difference() {
        let mut json = tiny_json();
        let padding = json!({"id": 576, "content": "<|pad|>", "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false});
        json["added_tokens"].as_array_mut().unwrap().push(padding);
        tiny().compare(&tokenizer(&json)).unwrap();
    }

    #[test]
    fn only_one_model_with_an_end_of_turn_is_an_error() {
        let tiny = tiny();
        let none = SpecialRoles::default();
        let error = IdMap::build(&tiny, &none, &tiny, &roles(&tiny, &["<|im_end|>"])).unwrap_err();
        assert!(error.contains("draft model has no end-of-turn"), "{error}");
    }
}

mod sequences {
    use super::*;

    #[test]
    fn steps_are_whole_tokens_that_end_with_the_delimiter() {
        let tiny = tiny();
        let text = "2 + 2 = 4.\n\nSo 4 + 1 = 5.\n\n</think>\n\nThe answer is \\boxed{5}.";
        let ids = tiny.encode(text).unwrap();
        let ranges: Vec<_> = steps(&ids, &tiny, "\n\n").collect();
        let texts: Vec<_> = ranges.iter().map(|range| tiny.decode(&ids[range.clone()])).collect();
        assert_eq!(
            texts,
            ["2 + 2 = 4.\n\n", "So 4 + 1 = 5.\n\n", "</think>\n\n", "The answer is \\boxed{5}."]
        );
        assert_eq!(ranges.last().unwrap().end, ids.len());
        assert_eq!(steps(&[], &tiny, "\n\n").count(), 0);
        assert_eq!(steps(&ids, &tiny, "").count(), 1);
    }

    proptest! {
        #[test]
        fn steps_cover_all_ids_and_all_but_the_last_hold_a_delimiter(
            text in "([a-c.]{0,4}\\n{0,3}){0,8}",
        ) {
            let tiny = tiny();
            let ids = tiny.encode(&text).unwrap();
            let ranges: Vec<_> = steps(&ids, &tiny, "\n\n").collect();
            let mut at = 0;
            for (index, range) in ranges.iter().enumerate() {
                prop_assert_eq!(range.start, at);
                at = range.end;
                let step = tiny.decode(&ids[range.clone()]);
                prop_assert!(step.contains("\n\n") || index + 1 == ranges.len());
                // The step was not complete before its last token.
                let before = tiny.decode(&ids[range.start..range.end - 1]);
                prop_assert!(!before.contains("\n\n"));
            }
            prop_assert_eq!(at, ids.len());
        }
    }

    #[test]
    fn thinking_is_seen_whether_the_prompt_or_the_model_opened_it() {
        let tiny = tiny();
        let roles = SpecialRoles::with_tags(&tiny, vec![TokenId(2)]);
        let text_roles = SpecialRoles { think: None, close_think: None, ..roles.clone() };
        let user = "<|im_start|>user\nWhat does <think> mean?<|im_end|>\n";
        let closed = "<|im_start|>assistant\n<think>\na</think>\n\nb<|im_end|>\n";
        let turn = "<|im_start|>assistant\n";
        for (prompt, state) in [
            (format!("{user}{turn}<think>\n"), ReasoningState::Thinking),
            (format!("{user}{turn}"), ReasoningState::Outside),
            (format!("{user}{closed}{user}{turn}"), ReasoningState::Outside),
            (format!("{user}{turn}<think>\nx\n</think>\n\n"), ReasoningState::Done),
            (user.to_owned(), ReasoningState::Outside),
        ] {
            let tags = ReasoningTags::think(&roles);
            let ids = tiny.encode(&prompt).unwrap();
            let tracker = ReasoningTracker::after_prompt(&tags, &tiny, &ids);
            assert_eq!(tracker.state(), state, "{prompt}");
        }
        // The same tags as plain text, over several tokens.
        let tags = ReasoningTags::think(&text_roles);
        let mut prompt = tiny.encode("<|im_start|>assistant\n").unwrap();
        prompt.extend(tiny.encode_ordinary("<think>\n").unwrap());
        let mut tracker = ReasoningTracker::after_prompt(&tags, &tiny, &prompt);
        assert_eq!(tracker.state(), ReasoningState::Thinking);
        for id in tiny.encode_ordinary("so 4.\n</think>").unwrap() {
            tracker.push(id, tiny.token_bytes(id));
        }
        assert_eq!(tracker.state(), ReasoningState::Done);
    }
}

mod templates {
    use super::*;

    fn template(name: &str, specials: &Json) -> ChatTemplate {
        let source = std::fs::read_to_string(fixture(&format!("templates/{name}.jinja"))).unwrap();
        let text = |field: &str| specials[field].as_str().map(str::to_owned);
        let specials = SpecialText {
            bos: text("bos_token"),
            eos: text("eos_token"),
            unk: text("unk_token"),
            pad: text("pad_token"),
        };
        ChatTemplate::new(&source, specials).unwrap()
    }

    #[test]
    fn prompts_equal_those_of_transformers_byte_for_byte() {
        let rows = rows("goldens.json");
        assert!(rows.len() > 100);
        let mut different = Vec::new();
        for row in &rows {
            let name = row["template"].as_str().unwrap();
            let messages: Vec<Message> = serde_json::from_value(row["messages"].clone()).unwrap();
            let options = RenderOptions {
                add_generation_prompt: row["add_generation_prompt"].as_bool().unwrap(),
                continue_final_message: row["continue_final_message"].as_bool().unwrap(),
                variables: row["variables"].as_object().unwrap().clone(),
            };
            let rendered = template(name, &row["specials"]).render(&messages, &options);
            let case = format!("{name}, {}", row["name"].as_str().unwrap());
            match (row["text"].as_str(), rendered) {
                (Some(expected), Ok(got)) if got == expected => {}
                (Some(expected), Ok(got)) => {
                    different.push(format!("{case}:\n{got:?}\ninstead of\n{expected:?}"));
                }
                (Some(_), Err(error)) => different.push(format!("{case}: {error}")),
                (None, Ok(got)) => different.push(format!("{case}: expected an error, got {got}")),
                (None, Err(_)) => {}
            }
        }
        assert!(different.is_empty(), "{}", different.join("\n\n"));
    }

    fn judge_turn() -> [Message; 3] {
        [
            Message::new("user", "q"),
            Message::new("assistant", "<think>2+2\n\n"),
            Message::new("user", "Is the last reasoning step correct?"),
        ]
    }

    const PREFILL: &str = "<think>I think the quality score is: ";

    #[test]
    fn a_judge_suffix_keeps_the_trailing_space_of_its_prefill() {
        for (name, expected) in [
            (
                "tiny",
                "<|im_end|>\n<|im_start|>user\nIs the last reasoning step correct?<|im_end|>\n\
                 <|im_start|>assistant\n<think>I think the quality score is: ",
            ),
            (
                "qwq",
                "<|im_end|>\n<|im_start|>user\nIs the last reasoning step correct?<|im_end|>\n\
                 <|im_start|>assistant\n<think>I think the quality score is: ",
            ),
            (
                "r1-distill",
                "<｜end▁of▁sentence｜><｜User｜>Is the last reasoning step correct?<｜Assistant｜>\
                 <think>I think the quality score is: ",
            ),
        ] {
            let suffix = template(name, &json!({})).suffix_after(&judge_turn(), PREFILL).unwrap();
            assert_eq!(suffix, expected, "{name}");
        }
    }

    #[test]
    fn steps_and_judge_suffix_make_up_the_whole_judge_prompt() {
        for name in ["tiny", "qwq", "r1-distill", "smollm2", "qwen2.5-coder", "chatml"] {
            let template = template(name, &json!({"bos_token": "<s>"}));
            let open = RenderOptions {
                add_generation_prompt: false,
                continue_final_message: true,
                variables: Map::new(),
            };
            let turn = judge_turn();
            let steps = template.render(&turn[..2], &open).unwrap();
            let suffix = template.suffix_after(&turn, PREFILL).unwrap();
            let whole: Vec<Message> =
                turn.into_iter().chain([Message::new("assistant", PREFILL)]).collect();
            assert_eq!(steps + &suffix, template.render(&whole, &open).unwrap(), "{name}");
        }
    }

    #[test]
    fn a_prefill_that_the_template_would_corrupt_is_an_error() {
        let qwen3 = template("qwen3", &json!({}));
        let error = qwen3.suffix_after(&judge_turn(), PREFILL).unwrap_err().to_string();
        assert!(error.contains("before a prefill that opens the tag"), "{error}");
        let suffix = qwen3.suffix_after(&judge_turn(), "The quality score is: ").unwrap();
        assert!(suffix.ends_with("<think>\n\n</think>\n\nThe quality score is: "), "{suffix}");
    }

    #[test]
    fn a_template_that_drops_the_steps_is_an_error() {
        let source = "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.content }}\
                      {% endif %}{% endfor %}";
        let template = ChatTemplate::new(source, SpecialText::default()).unwrap();
        let error = template.suffix_after(&judge_turn(), "x").unwrap_err().to_string();
        assert!(error.contains("drops the content"), "{error}");
    }

    #[test]
    fn null_content_and_unknown_fields_of_a_message_survive() {
        let json = json!({"role": "assistant", "content": null, "tool_calls": [1], "x": "y"});
        let message: Message = serde_json::from_value(json).unwrap();
        assert_eq!(message.content, "");
        assert_eq!(message.extra.len(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn random_templates_never_panic(
            pieces in prop::collection::vec(
                prop::sample::select(vec![
                    "{% ", " %}", "{{ ", " }}", "for m in messages", "endfor", "if ", "endif",
                    "m.content", "messages", "[0]", "[1:]", "|tojson", "|trim", " ~ ", " + ",
                    "'x'", "12", "range(9)", ".split('a')", "(", ")", "set x = ", "-%}", "{%- ",
                    "generation", "endgeneration", "raise_exception('no')", "\n", "{#", "#}",
                    "namespace(a=1)", "loop.index0", "none", "is defined", "macro f()", "é",
                ]),
                0..24,
            ),
        ) {
            let source = pieces.concat();
            if let Ok(template) = ChatTemplate::new(&source, SpecialText::default()) {
                let message = Message::new("user", "a\u{1}b");
                let _ = template.render(&[message], &RenderOptions::default());
            }
        }
    }
}

mod gguf {
    use super::*;

    fn supported(model: &str, pre: &str) -> GgufVocab {
        let json = tiny_json();
        let mut tokens = vec![String::new(); 576];
        for (text, id) in json["model"]["vocab"].as_object().unwrap() {
            tokens[usize::try_from(id.as_u64().unwrap()).unwrap()].clone_from(text);
        }
        let merges = json["model"]["merges"].as_array().unwrap().iter();
        let merge = |merge: &Json| {
            let text = |at: usize| merge[at].as_str().unwrap();
            merge.as_str().map_or_else(|| format!("{} {}", text(0), text(1)), str::to_owned)
        };
        GgufVocab {
            model: model.to_owned(),
            pre: pre.to_owned(),
            token_types: (0..576).map(|id| if id < 5 { 3 } else { 1 }).collect(),
            tokens,
            merges: merges.map(merge).collect(),
            eos: Some(2),
            ..GgufVocab::default()
        }
    }

    #[test]
    fn metadata_gives_the_ids_of_the_original_file() {
        // The tiny pair cuts digits first and then as Qwen does, which is what `qwen2` means.
        let gguf = Tokenizer::from_gguf(&supported("gpt2", "qwen2")).unwrap();
        gguf.compare(&tiny()).unwrap();
        for row in rows("tiny_prompts.json") {
            assert_eq!(gguf.encode(row["text"].as_str().unwrap()).unwrap(), ids(&row["ids"]));
        }
        assert!(gguf.is_special(TokenId(4)));
    }

    #[test]
    fn unknown_names_are_errors_that_list_the_known_ones() {
        for (model, pre, named) in [("gpt2", "nonesuch", "qwen2"), ("bert", "", "llama")] {
            let error = Tokenizer::from_gguf(&supported(model, pre)).unwrap_err().to_string();
            assert!(error.contains("not supported") && error.contains(named), "{error}");
        }
        for pre in SUPPORTED_PRE {
            Tokenizer::from_gguf(&supported("gpt2", pre)).unwrap();
        }
    }

    #[test]
    fn contradicting_lists_are_errors_that_name_the_field() {
        let refuse = |edit: &dyn Fn(&mut GgufVocab), expected: &str| {
            let mut vocab = supported("gpt2", "qwen2");
            edit(&mut vocab);
            let error = Tokenizer::from_gguf(&vocab).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} does not mention {expected}");
        };
        refuse(&|vocab| vocab.token_types.truncate(3), "token_type");
        refuse(&|vocab| vocab.merges[3] = "nospace".to_owned(), "merges[3]");
        refuse(&|vocab| vocab.merges[3] = "a nonesuch".to_owned(), "merges[3]");
        refuse(&|vocab| vocab.eos = Some(576), "eos_token_id");
        refuse(&|vocab| vocab.model = "llama".to_owned(), "scores");
    }

    #[test]
    fn sentencepiece_scores_give_the_ids_of_sentencepiece() {
        let row = &rows("spm.json")[0];
        let vocab = GgufVocab {
            model: "llama".to_owned(),
            tokens: serde_json::from_value(row["tokens"].clone()).unwrap(),
            token_types: serde_json::from_value(row["types"].clone()).unwrap(),
            scores: serde_json::from_value(row["scores"].clone()).unwrap(),
            ..GgufVocab::default()
        };
        let tokenizer = Tokenizer::from_gguf(&vocab).unwrap();
        for row in row["rows"].as_array().unwrap() {
            let text = row["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), ids(&row["ids"]), "{text:?}");
            let decoded = tokenizer.decode(&ids(&row["ids"]));
            assert_eq!(decoded.strip_prefix(' ').unwrap_or(&decoded), text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        #[test]
        fn damaged_metadata_is_an_error_or_works(
            texts in prop::collection::vec((0_usize..576, "\\PC{0,6}"), 0..6),
            merges in prop::collection::vec((0_usize..315, "\\PC{0,3} ?\\PC{0,3}"), 0..3),
            types in prop::collection::vec((0_usize..576, -2_i32..9), 0..6),
            model in prop::sample::select(vec!["gpt2", "llama"]),
            score in prop::sample::select(vec![0.0, f32::NAN, f32::NEG_INFINITY]),
        ) {
            let mut vocab = supported(model, "llama-bpe");
            vocab.scores = vec![score; 576];
            if model == "llama" {
                for byte in 0..=255_usize {
                    vocab.tokens[byte] = format!("<0x{byte:02X}>");
                }
            }
            for (id, text) in texts { vocab.tokens[id] = text; }
            for (rank, merge) in merges { vocab.merges[rank] = merge; }
            for (id, kind) in types { vocab.token_types[id] = kind; }
            if let Ok(tokenizer) = Tokenizer::from_gguf(&vocab) {
                let _ = tokenizer.encode("Hello 12.\n\n<think> é");
                let _ = tokenizer.compare(&tiny());
            }
        }
    }

    /// Just enough of GGUF to get at `tokenizer.ggml.*`.
    struct Reader<'a>(&'a [u8]);

    impl<'a> Reader<'a> {
        fn take(&mut self, len: usize) -> &'a [u8] {
            let (taken, rest) = self.0.split_at(len);
            self.0 = rest;
            taken
        }

        fn number(&mut self, len: usize) -> u64 {
            let mut bytes = [0; 8];
            bytes[..len].copy_from_slice(self.take(len));
            u64::from_le_bytes(bytes)
        }

        fn text(&mut self) -> String {
            let len = self.number(8) as usize;
            String::from_utf8_lossy(self.take(len)).into_owned()
        }

        fn value(&mut self, kind: u64) -> Json {
            match kind {
                0 | 1 | 7 => self.number(1).into(),
                2 | 3 => self.number(2).into(),
                4 | 5 => self.number(4).into(),
                6 => f64::from(f32::from_bits(self.number(4) as u32)).into(),
                8 => self.text().into(),
                9 => {
                    let (kind, len) = (self.number(4), self.number(8));
                    (0..len).map(|_| self.value(kind)).collect()
                }
                _ => self.number(8).into(),
            }
        }
    }

    fn vocab_of(path: &Path) -> GgufVocab {
        let bytes = std::fs::read(path).unwrap();
        let mut reader = Reader(&bytes[16..]);
        let count = reader.number(8);
        let mut fields = Map::new();
        for _ in 0..count {
            let name = reader.text();
            let kind = reader.number(4);
            let value = reader.value(kind);
            fields.insert(name, value);
        }
        let mut field =
            |name: &str| fields.remove(&format!("tokenizer.ggml.{name}")).unwrap_or(Json::Null);
        GgufVocab {
            model: field("model").as_str().unwrap().to_owned(),
            pre: field("pre").as_str().unwrap().to_owned(),
            tokens: serde_json::from_value(field("tokens")).unwrap(),
            token_types: serde_json::from_value(field("token_type")).unwrap(),
            merges: serde_json::from_value(field("merges")).unwrap(),
            ..GgufVocab::default()
        }
    }

    fn models() -> Option<PathBuf> {
        let named = std::env::var_os("FORERUN_MODELS").map(PathBuf::from);
        let home = std::env::var_os("HOME").map(PathBuf::from);
        named.or_else(|| Some(home?.join(".cache/forerun/models")))
    }

    #[test]
    fn real_files_give_the_ids_of_llama_cpp_and_of_the_original_pipeline() {
        let rows = rows("gguf_ids.json");
        for name in ["qwen2.5-coder-0.5b", "smollm2-135m"] {
            let path = models().unwrap_or_default().join(format!("{name}.gguf"));
            if !path.exists() {
                println!("skipped {name}: no {}; `forerun pull` gets it", path.display());
                continue;
            }
            let vocab = vocab_of(&path);
            let start = std::time::Instant::now();
            Tokenizer::from_gguf(&vocab).unwrap();
            println!("{name}: built in {:?}", start.elapsed());
            let mut different = Vec::new();
            let mut built: Option<(Json, Tokenizer)> = None;
            for row in rows.iter().filter(|row| row["model"] == name) {
                if built.as_ref().is_none_or(|(pre, _)| *pre != row["pre"]) {
                    let mut vocab = vocab.clone();
                    if let Some(pre) = row["pre"].as_str() {
                        pre.clone_into(&mut vocab.pre);
                    }
                    built = Some((row["pre"].clone(), Tokenizer::from_gguf(&vocab).unwrap()));
                }
                let (pre, tokenizer) = built.as_ref().unwrap();
                let text = row["text"].as_str().unwrap();
                let got = tokenizer.encode(text).unwrap();
                let original = row.get("original").map(ids);
                // llama.cpp leaves out the NFC that Qwen's own files ask for.
                let nfc = matches!(pre.as_str(), None | Some("qwen2" | "deepseek-r1-qwen"))
                    && name.starts_with("qwen")
                    && text.contains('\u{301}');
                if original.as_ref().is_some_and(|original| *original != got)
                    || (!nfc && got != ids(&row["llama_cpp"]))
                {
                    different.push(format!(
                        "{pre} {text:?}: {got:?}, original {original:?}, llama.cpp {}",
                        row["llama_cpp"]
                    ));
                }
            }
            assert!(different.is_empty(), "{name}: {}", different.join("\n"));
        }
    }
}
