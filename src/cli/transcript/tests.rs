//! A transcript is judged by what a terminal shows: a small emulator interprets its output.

use super::*;
use crate::engine::{PhaseCost, TokenCounts};
use crate::ids::{RequestId, TokenId};
use crate::policy::{AnswerBy, FinishWhy, Gates, Origin, PolicyKind};

const SCREEN: Screen = Screen { columns: 20, rows: 10 };

fn settings(policy: PolicyKind) -> Settings {
    Settings {
        pair: "test".into(),
        policy,
        device: "cpu".into(),
        threshold: 7.0,
        score: Readout::Mean,
        judge: "turn".into(),
        judge_suffix_tokens: 9,
        first_n: 0,
        token_budget: 100,
        token_budget_asked: None,
        step_tokens_max: 50,
        answer_by: AnswerBy::Base,
        speculation: None,
        salvage: false,
        gates: Gates::default(),
        max_model_len: 200,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 0,
    }
}

fn finished(text: &str, policy: PolicyKind) -> Event {
    Event::Finished(Box::new(Reply {
        id: RequestId(0),
        text: text.into(),
        final_text: String::new(),
        answer: None,
        finish: FinishWhy::Stop,
        steps: vec![],
        accepted: 0,
        gated: 0,
        rewritten: 0,
        ids: vec![],
        tokens: TokenCounts::default(),
        cost: [PhaseCost::default(); 6],
        total_ms: 1.0,
        settings: settings(policy),
    }))
}

/// Events that append `words`, one token each, from tail index `at` on.
fn words(at: u32, words: &[&str]) -> Vec<Event> {
    let token = |(i, text): (usize, &&str)| Event::Tokens {
        logprobs: vec![],
        at: at + i as u32,
        ids: vec![TokenId(0)],
        text: (*text).into(),
        origin: Origin::Draft,
    };
    words.iter().enumerate().map(token).collect()
}

fn began(index: u32, writer: Role) -> Event {
    Event::Note(Note::StepBegan { index, writer })
}

fn scored(index: u32, score: f32, accepted: bool) -> Event {
    Event::Note(Note::StepScored {
        index,
        score: Some(score),
        accepted,
        drafted: 2,
        ahead: 0,
        logprobs: vec![],
    })
}

fn kept(index: u32, start: u32, end: u32, writer: Role) -> Event {
    Event::Note(Note::StepKept { index, start, end, writer })
}

/// A drafted step kept, one rewritten, an end of turn in the base's answer.
fn conversation() -> Vec<Event> {
    let mut events = vec![Event::Started(settings(PolicyKind::SpecReason)), began(0, Role::Draft)];
    events.extend(words(0, &["one ", "two\n\n"]));
    events.extend([scored(0, 7.94, true), kept(0, 0, 2, Role::Draft), began(1, Role::Draft)]);
    // Longer than the screen is wide: it takes two rows.
    events.extend(words(2, &["bad step that is ", "long\n\n"]));
    // The engine tells of a rollback before it tells why.
    events.extend([Event::RolledBack { to: 2 }, scored(1, 2.0, false)]);
    events.extend(words(2, &["good", "</think>"]));
    events.push(kept(1, 2, 4, Role::Base));
    let why = crate::policy::ThinkingEnd::Closed;
    events.push(Event::Note(Note::AnswerBegan { at: 4, writer: Role::Base, why }));
    events.extend(words(4, &["It is ", "3.", "<|end|>"]));
    events.push(finished("one two\n\ngood</think>It is 3.", PolicyKind::SpecReason));
    events
}

fn shown(events: &[Event], ansi: bool) -> String {
    let mut transcript = Transcript::new(vec![], Paint { ansi }, || SCREEN);
    for event in events {
        transcript.event(event).unwrap();
    }
    String::from_utf8(transcript.into_inner()).unwrap()
}

/// What a terminal of [`SCREEN`]'s width shows: its rows, struck-through text in tildes.
fn screen(output: &str) -> Vec<String> {
    let mut rows: Vec<Vec<String>> = vec![vec![]];
    let (mut row, mut column, mut struck) = (0, 0, false);
    let mut chars = output.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => {
                assert_eq!(chars.next(), Some('['));
                let mut code = String::new();
                let last = loop {
                    match chars.next().unwrap() {
                        c if c.is_ascii_digit() || c == ';' => code.push(c),
                        c => break c,
                    }
                };
                match last {
                    'm' => struck = code.split(';').any(|n| n == "9"),
                    'A' => row -= code.parse::<usize>().unwrap(),
                    'J' => {
                        rows.truncate(row + 1);
                        rows[row].truncate(column);
                    }
                    other => panic!("unexpected sequence {other}"),
                }
            }
            '\r' => column = 0,
            '\n' => {
                (row, column) = (row + 1, 0);
                rows.resize(rows.len().max(row + 1), vec![]);
            }
            c => {
                if column == SCREEN.columns {
                    (row, column) = (row + 1, 0);
                    rows.resize(rows.len().max(row + 1), vec![]);
                }
                let cell = if struck { format!("~{c}~") } else { c.to_string() };
                let cells = &mut rows[row];
                cells.resize(cells.len().max(column + 1), " ".into());
                cells[column] = cell;
                column += 1;
            }
        }
    }
    rows.into_iter().map(|row| row.concat().replace("~~", "")).collect()
}

#[test]
fn without_colours_each_decision_is_a_labelled_line() {
    let expected = "[draft 7.9] one two\n\
                    [draft 2.0 rejected] bad step that is long\n\
                    [base] good</think>\n\
                    [base answer] It is 3.\n";
    assert_eq!(shown(&conversation(), false), expected);
}

#[test]
fn a_terminal_shows_rejected_drafts_struck_through_and_no_end_of_turn() {
    let rows = screen(&shown(&conversation(), true));
    // The legend takes what it takes; the transcript follows its blank row.
    let legend = rows.iter().position(String::is_empty).expect("a blank row");
    let expected = [
        "one two [7.9]",
        "",
        "~bad step that is lon~",
        "~g~ [2.0, rejected]",
        "",
        "good</think>",
        "It is 3.",
        "",
    ];
    assert_eq!(rows[legend + 1..], expected);
}

#[test]
fn text_arrives_while_it_is_written_but_for_the_newest_piece() {
    let events = conversation();
    let legend = screen(&shown(&events[..2], true));
    let rows = screen(&shown(&events[..4], true));
    assert_eq!(rows.last().unwrap(), "one", "{rows:?}");
    assert_eq!(rows.len(), legend.len());
    assert_eq!(shown(&events[..4], false), "");
}

#[test]
fn a_step_taller_than_the_screen_is_not_drawn_over() {
    let mut events = vec![Event::Started(settings(PolicyKind::SpecReason)), began(0, Role::Draft)];
    let tall = "line\n".repeat(SCREEN.rows + 1);
    events.extend(words(0, &[&tall, "end", "\n\n"]));
    events.extend([scored(0, 9.0, true), kept(0, 0, 3, Role::Draft), began(1, Role::Draft)]);
    let output = shown(&events, true);
    assert!(!output.contains("\x1b[J"), "{output:?}");
}

#[test]
fn a_model_cannot_steer_the_terminal() {
    let mut events = vec![Event::Started(settings(PolicyKind::Draft)), began(0, Role::Draft)];
    events.extend(words(0, &["a\x1b[2Jb\r\u{9b}c", ""]));
    events.push(kept(0, 0, 2, Role::Draft));
    events.push(finished("a\x1b[2Jb\r\u{9b}c", PolicyKind::Draft));
    assert_eq!(shown(&events, false), "[draft] a\u{fffd}[2Jb\u{fffd}\u{fffd}c\n");
}

#[test]
fn a_cancelled_step_is_shown_as_unfinished() {
    let mut events = vec![Event::Started(settings(PolicyKind::SpecReason)), began(0, Role::Draft)];
    events.extend(words(0, &["half a ", "step"]));
    events.push(finished("half a step", PolicyKind::SpecReason));
    assert_eq!(shown(&events, false), "[draft unfinished] half a step\n");
    assert_eq!(screen(&shown(&events, true)).iter().rev().nth(1).unwrap(), "half a step");
}

#[test]
fn rows_are_counted_as_terminals_wrap() {
    let screen = Screen { columns: 4, rows: 9 };
    for (text, rows) in [("", 1), ("abcd", 1), ("abcde", 2), ("ab\ncd", 2), ("abcd\n", 2)] {
        assert_eq!(screen.rows_of(text), rows, "{text:?}");
    }
    // A wide character that does not fit goes to the next row whole.
    assert_eq!(screen.rows_of("abc字"), 2);
    assert_eq!(screen.rows_of("ab字"), 1);
}
