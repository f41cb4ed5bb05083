//! A chat template, rendered over a short conversation.
#![no_main]

use forerun::text::{ChatTemplate, Message, RenderOptions, SpecialText};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| {
    let specials = SpecialText { bos: Some("<s>".to_owned()), ..SpecialText::default() };
    let Ok(template) = ChatTemplate::new(source, specials) else { return };
    let messages = [
        Message::new("system", "Be brief."),
        Message::new("user", "1 + 1?"),
        Message::new("assistant", "<think>\nEasy.\n</think>\n\n2"),
        Message::new("user", "2 + 2?"),
    ];
    let _ = template.render(&messages, &RenderOptions::default());
});
