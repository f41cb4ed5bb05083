//! Uses only the public API: asks the embedded pair a question and prints what happened.

use forerun::engine::{Engine, EngineOptions, Event, Pair, Request};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::start(EngineOptions::new(Pair::tiny()))?;
    let question = engine.pair().settings.example;
    let (mut tokens, mut notes) = (0, 0);
    for event in engine.submit(Request::ask(question))? {
        match event {
            Event::Tokens { ids, .. } => tokens += ids.len(),
            Event::Note(_) => notes += 1,
            Event::Failed(error) => return Err(error.into()),
            Event::Finished(reply) => {
                println!("{tokens} tokens, {notes} decisions, answer {:?}", reply.answer);
                assert_eq!(reply.answer.as_deref(), Some("90"), "the built-in question");
                return Ok(());
            }
            _ => {}
        }
    }
    Err("the engine stopped without a terminal event".into())
}
