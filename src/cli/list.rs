//! `forerun list`: pairs and models by name, and which of them are on this machine.

use super::models::{self, EMBEDDED, KnownModel, MODELS};
use super::ui;
use crate::engine::{CATALOGUE, CatalogueEntry, ModelOrigin};
use anyhow::Result;
use clap::Args;
use std::io::Write;

/// Flags of the verb: none.
#[derive(Debug, Args)]
pub(super) struct ListArgs {}

impl ListArgs {
    /// Prints two tables.
    pub(super) fn run(self) -> Result<()> {
        let pairs = CATALOGUE
            .iter()
            .map(|e| Ok([e.name.to_owned(), pair_state(e)?, e.summary.to_owned()]))
            .collect::<Result<Vec<_>>>()?;
        let mut files = vec![];
        for model in MODELS {
            files.push([model.name.to_owned(), model_state(model)?, model.summary.to_owned()]);
        }
        for name in EMBEDDED {
            let summary = format!("the {} model of the pair tiny", &name["tiny-".len()..]);
            files.push([name.to_owned(), "embedded".into(), summary]);
        }
        let mut out = std::io::stdout().lock();
        table(&mut out, ["PAIR", "STATE", ""], &pairs)?;
        writeln!(out)?;
        table(&mut out, ["MODEL", "STATE", ""], &files)?;
        writeln!(out, "\nmodels are kept in {}", models::folder()?.display())?;
        Ok(())
    }
}

fn pair_state(entry: &CatalogueEntry) -> Result<String> {
    let ModelOrigin::Models { base, draft } = entry.origin else { return Ok("embedded".into()) };
    let (base, draft) = (models::present(base)?.is_some(), models::present(draft)?.is_some());
    Ok(match (base, draft) {
        (true, true) => "present".into(),
        (false, false) => format!("forerun pull {}", entry.name),
        (true, false) => format!("no draft; forerun pull {}", entry.name),
        (false, true) => format!("no base; forerun pull {}", entry.name),
    })
}

fn model_state(model: &KnownModel) -> Result<String> {
    let length = model.path()?.metadata().map(|m| m.len()).ok();
    Ok(match length {
        Some(length) if length == model.bytes => format!("present, {}", ui::bytes(length)),
        Some(length) => {
            format!("damaged: {} of {}", ui::bytes(length), ui::bytes(model.bytes))
        }
        None => format!("forerun pull {}", model.name),
    })
}

fn table(out: &mut impl Write, head: [&str; 3], rows: &[[String; 3]]) -> std::io::Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let (first, second) = (width(0), width(1));
    writeln!(
        out,
        "{}",
        format!("{:first$}  {:second$}  {}", head[0], head[1], head[2]).trim_end()
    )?;
    for [a, b, c] in rows {
        writeln!(out, "{a:first$}  {b:second$}  {c}")?;
    }
    Ok(())
}
