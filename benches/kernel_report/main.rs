//! The kernel report: `cargo bench --bench kernel_report [-- --write] [MODEL ...]`.
//!
//! For each kernel at the shapes of real models: what it moves, counted on the software GPU; what
//! the assembler made of it; and what a model of three GPUs makes of both. `--write` puts it into
//! this folder's README.md and decode.svg. No time in it was measured.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints")]

#[allow(dead_code, reason = "the tests use the rest")]
mod contracts;
#[allow(dead_code, reason = "the tests use the rest")]
mod counts;
mod measure;
mod model;
mod overlap;
mod plot;
mod report;
mod sass;
mod shapes;
mod tables;
mod weights;

#[path = "../../src/device/cuda/kernels.rs"]
#[allow(dead_code, reason = "the runtime uses the rest")]
mod kernels;

use measure::{Pass, measure};
use report::Model;
use shapes::{FIXTURES, Fixture, Mix};
use std::error::Error;
use std::path::Path;

/// Where the report stands in README.md.
const MARKS: [&str; 2] = ["<!-- report -->", "<!-- end of report -->"];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let write = arguments.iter().any(|argument| argument == "--write");
    let names: Vec<_> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    let wanted = |fixture: &Fixture| {
        names.is_empty() || names.iter().any(|name| fixture.name.contains(name.as_str()))
    };
    if kernels::built().is_none() {
        return Err(format!("built without CUDA kernels; fix: {}", kernels::Built::FIX).into());
    }
    if sass::find().is_none() {
        if std::env::var_os("FORERUN_REQUIRE_KERNELS").is_some() {
            return Err(format!("no disassembler; fix: {}", sass::FIX).into());
        }
        eprintln!("NO DISASSEMBLER: the report lacks all that machine code shows; {}", sass::FIX);
    }
    let compilation = sass::compilation()?;
    let mut models: Vec<Model> = vec![];
    for fixture in FIXTURES.into_iter().filter(wanted) {
        for mix in Mix::ALL {
            eprintln!("{} {} on the software GPU", fixture.name, mix.name());
            let same = models.iter().find(|m| m.mix == mix && m.fixture.has_sizes_of(&fixture));
            let measured = match same {
                Some(same) => same.measured.clone(),
                None => {
                    measure(&fixture, mix, &Pass::ALL, &[Pass::Decode, Pass::Propose, Pass::Score])
                }
            };
            models.push(Model { fixture, mix, measured });
        }
    }
    let text = tables::report(&models, &compilation);
    if !write {
        println!("{text}");
        return Ok(());
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/kernel_report");
    let readme = std::fs::read_to_string(folder.join("README.md"))?;
    let [begin, end] = MARKS;
    let parts = readme.split_once(begin).zip(readme.split_once(end));
    let Some(((before, _), (_, after))) = parts else {
        return Err(format!("README.md has no {begin} and {end}").into());
    };
    let readme = format!("{before}{begin}\n\n{text}{end}{after}");
    std::fs::write(folder.join("README.md"), readme)?;
    std::fs::write(folder.join("decode.svg"), plot::decode(&models, &compilation))?;
    Ok(())
}
