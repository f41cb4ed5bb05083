//! The report as Markdown.

use crate::contracts::{Bound, Contract, contracts};
use crate::counts::Region;
use crate::measure::{CONTEXT, Measured, Op, Pass, SCORED_ROWS};
use crate::model::{GPUS, H100, assumptions};
use crate::report::{Model, work};
use crate::sass::{Compilation, FIX, Format};
use crate::shapes::Part;
use std::fmt::Write as _;

/// The whole report.
pub(crate) fn report(models: &[Model], compilation: &Compilation) -> String {
    let mut text = String::new();
    let has_code =
        compilation.values().flat_map(|k| k.values()).all(|kernel| kernel.code.is_some());
    if !has_code {
        let _ = writeln!(
            text,
            "> **No disassembler: machine code was not looked at, and nothing that needs it is \
             here.** Fix: {FIX}.\n"
        );
    }
    text += &contract_table(&contracts(models, compilation));
    text += &time_table(models, compilation);
    text += &crate::overlap::table(models);
    for model in models {
        text += &operation_table(model, compilation);
    }
    for arch in compilation.keys() {
        text += &kernel_table(arch, compilation);
    }
    text
}

/// At most four digits.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v.fract() == 0.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 3,
        _ => 4,
    };
    format!("{value:.digits$}")
}

fn contract_table(contracts: &[Contract]) -> String {
    let mut text =
        "### Contracts\n\n| | of | contract | reached | |\n|---|---|---:|---:|---|\n".to_owned();
    for contract in contracts {
        let (sign, limit) = match contract.bound {
            Bound::AtMost(limit) => ('≤', limit),
            Bound::AtLeast(limit) => ('≥', limit),
        };
        let kept = if contract.holds() { "" } else { "**not kept**" };
        let model = if contract.is_model { " (model)" } else { "" };
        let (limit, reached) = (number(limit), number(contract.reached));
        let Contract { what, of, .. } = contract;
        let _ = writeln!(text, "| {what}{model} | {of} | {sign} {limit} | {reached} | {kept} |");
    }
    text + "\n"
}

fn time_table(models: &[Model], compilation: &Compilation) -> String {
    let [step, suffix] = SCORED_ROWS;
    let mut text = format!(
        "### Predicted times (model)\n\nA token at batch 1, and a scoring of {step} + {suffix} \
        rows, \
         {CONTEXT} keys before them; the floor is the bytes of weights, keys and values over the \
         bandwidth. Assumed: {}.\n\n| model | weights | GPU | token, ms | floor, ms | of the \
         floor | \
         scoring, ms | in tokens |\n|---|---|---|---:|---:|---:|---:|---:|\n",
        assumptions()
    );
    for model in models {
        for gpu in &GPUS {
            let [token, score] =
                [Pass::Decode, Pass::Score].map(|pass| model.predicted(gpu, compilation, pass));
            let Some(token) = token else { continue };
            let (scored, in_tokens) = match score {
                Some(score) => {
                    (format!("{:.3}", score.us / 1e3), format!("{:.2}", score.us / token.us))
                }
                None => Default::default(),
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.3} | {:.3} | {:.0} % | {scored} | {in_tokens} |",
                model.fixture.name,
                model.mix.name(),
                gpu.name,
                token.us / 1e3,
                token.floor_us / 1e3,
                100.0 * token.share(),
            );
        }
    }
    text + "\n"
}

fn operation_table(model: &Model, compilation: &Compilation) -> String {
    let name = format!("{}, {}", model.fixture.name, model.mix.name());
    let mut text = format!(
        "### {name}\n\nMB requested, every time counted, of what each region has; in flight and \
        CTAs \
         an SM on an H100, where the floor is that of the launch's own bytes, and what it adds to \
         its layer's time is \
         the model's.\n\n| rows | | kernel | \
         CTAs | an SM | KiB in flight | weights | KV | activations | vectors | replays | floor, \
         µs | \
         adds, µs |\n|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    );
    for pass in Pass::ALL {
        let head = model.of(Part::Head, pass, Op::Head);
        let mut adds = model.adds_us(&H100, compilation, Part::Layer, pass).into_iter();
        for measured in model.layer(Part::Layer, pass).into_iter().chain(head) {
            text += &operation_rows(measured, compilation, &mut adds);
        }
    }
    text + "\n"
}

fn operation_rows(
    measured: &Measured,
    compilation: &Compilation,
    adds_us: &mut impl Iterator<Item = f64>,
) -> String {
    let mut text = String::new();
    for launch in &measured.launches {
        let work = work(&H100, compilation, measured, launch);
        let mb = |region: Region, of: u64| {
            let bytes = launch.bytes(region);
            match (bytes, of) {
                (0, _) => String::new(),
                (_, 0) => number(bytes as f64 / 1e6),
                _ => format!("{} of {}", number(bytes as f64 / 1e6), number(of as f64 / 1e6)),
            }
        };
        let (each, flight, floor) = work.as_ref().map_or_else(Default::default, |work| {
            let each = work.ctas_per_sm(&H100);
            let resident = f64::from(each).min((work.ctas as f64 / H100.sms as f64).ceil());
            (
                each.to_string(),
                number(resident * work.in_flight_bytes / 1024.0),
                number(work.memory_bytes / (H100.gb_per_s * 1e3)),
            )
        });
        let kernel = launch.kernel.trim_start_matches("forerun_");
        let _ = writeln!(
            text,
            "| {} | {} | `{kernel}` | {} | {each} | {flight} | {} | {} | {} | {} | {} | {floor} | \
            {} |",
            measured.pass.rows(),
            measured.op.name(),
            launch.ctas(),
            mb(Region::Weights, measured.weight_bytes),
            mb(Region::Kv, if measured.op == Op::Attention { measured.kv_bytes } else { 0 }),
            mb(Region::Activations, 0),
            mb(Region::Vectors, 0),
            launch.replays.iter().sum::<u64>(),
            adds_us.next().map(number).unwrap_or_default(),
        );
    }
    text
}

fn kernel_table(arch: &str, compilation: &Compilation) -> String {
    let formats = [Format::Bf16, Format::Q8_0, Format::Q4_K, Format::Q6_K];
    let mut text = format!(
        "### Kernels for {arch}\n\nBytes in flight are a thread's, in the loop over weights of \
        each \
         format.\n\n| kernel | registers | spills | local | 16-byte loads | others | copies | \
         HMMA |"
    );
    let names: Vec<_> = formats.iter().map(|format| format.name()).collect();
    let _ = writeln!(text, " {} |", names.join(" | "));
    let _ = writeln!(text, "|---|{}", "---:|".repeat(7 + formats.len()));
    for (name, kernel) in compilation.get(arch).into_iter().flatten() {
        let name = name.trim_start_matches("forerun_");
        let spills = kernel.spilled_bytes + kernel.stack_bytes;
        let _ = write!(text, "| `{name}` | {} | {spills} |", kernel.registers);
        match &kernel.code {
            None => text += &" |".repeat(5 + formats.len()),
            Some(code) => {
                let counts =
                    [code.local, code.wide_loads, code.narrow_loads, code.copies, code.mmas];
                counts.iter().for_each(|count| {
                    let _ = write!(text, " {count} |");
                });
                for format in formats {
                    let bytes = code.in_flight_bytes.get(&format);
                    let bytes = bytes.map(u32::to_string).unwrap_or_default();
                    let _ = write!(text, " {bytes} |");
                }
            }
        }
        text.push('\n');
    }
    text + "\n"
}
