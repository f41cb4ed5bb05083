//! The predicted times as a picture.

use crate::measure::Pass;
use crate::model::GPUS;
use crate::report::Model;
use crate::sass::Compilation;
use std::fmt::Write as _;

const LEFT: f64 = 210.0;
const WIDTH: f64 = 520.0;
const BAR: f64 = 16.0;
const GAP: f64 = 14.0;
const TOP: f64 = 46.0;
/// One for each GPU.
const COLOURS: [&str; 3] = ["#7b6fb0", "#2f8f83", "#c98a2b"];

/// Bars of how near a decoded token comes to the bandwidth floor, by model and GPU.
pub(crate) fn decode(models: &[Model], compilation: &Compilation) -> String {
    let mut bars = String::new();
    let mut y = TOP;
    for model in models {
        let name = format!("{} {}", model.fixture.name, model.mix.name());
        let middle = y + 1.5 * BAR + 4.0;
        let _ = writeln!(
            bars,
            "<text x=\"{:.0}\" y=\"{middle:.0}\" text-anchor=\"end\">{name}</text>",
            LEFT - 8.0
        );
        for (gpu, colour) in GPUS.iter().zip(COLOURS) {
            if let Some(token) = model.predicted(gpu, compilation, Pass::Decode) {
                let (width, text_y) = (WIDTH * token.share(), y + BAR - 4.0);
                let _ = writeln!(
                    bars,
                    "<rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"{:.0}\" \
                     fill=\"{colour}\"/>",
                    BAR - 2.0
                );
                let _ = writeln!(
                    bars,
                    "<text x=\"{:.1}\" y=\"{text_y:.0}\">{:.0} %, {:.2} ms</text>",
                    LEFT + width + 5.0,
                    100.0 * token.share(),
                    token.us / 1e3
                );
            }
            y += BAR;
        }
        y += GAP;
    }
    let (width, end) = (LEFT + WIDTH + 120.0, LEFT + WIDTH);
    let mut legend = String::new();
    for (i, (gpu, colour)) in GPUS.iter().zip(COLOURS).enumerate() {
        let x = LEFT + 80.0 * i as f64;
        let _ = writeln!(
            legend,
            "<rect x=\"{x:.0}\" y=\"26\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{:.0}\" y=\"35\">{}</text>",
            x + 14.0,
            gpu.name
        );
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#555\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"16\" font-size=\"13\">Model: one decoded token, bandwidth floor \
         over \
         predicted time</text>\n{legend}{bars}\
         <line x1=\"{end}\" y1=\"{TOP}\" x2=\"{end}\" y2=\"{y:.0}\" stroke=\"#999\"/>\n\
         <text x=\"{end}\" y=\"{:.0}\" text-anchor=\"middle\">floor</text>\n</svg>\n",
        y + 14.0,
        height = y + 24.0,
    )
}
