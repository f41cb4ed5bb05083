//! Pairs of models and what is known about them.
//!
//! A [`Pair`] is two model files and the settings they were measured or published with. The
//! catalogue holds the embedded pair, the pair that can be pulled by anybody, and the pairs of the
//! paper (§5.1). `forerun run --base … --draft …` makes one from [`Pair::custom`].

use super::judge::JudgeText;
use super::request::Tuned;
use crate::config;
use crate::policy::PolicyKind;
use crate::sample::{Readout, SamplingOverrides};
use std::path::PathBuf;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder or a `.gguf` file.
    Path(PathBuf),
    /// Files compiled into the program: name and content.
    Embedded(&'static [(&'static str, &'static [u8])]),
}

impl std::fmt::Display for ModelSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Embedded(_) => f.write_str("embedded"),
        }
    }
}

/// Whether a pair thinks between tags before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinking {
    /// Thinking ends at `</think>`, then an answer follows.
    Tags,
    /// The whole reply is stepped.
    None,
}

/// Everything about a pair but its files.
#[derive(Debug, Clone)]
pub struct PairSettings {
    /// Thinking or not.
    pub thinking: Thinking,
    /// Appended to the last user message, after a space or a blank line as written.
    pub instruction: Option<String>,
    /// The judge's words.
    pub judge: JudgeText,
    /// How ten probabilities become a score.
    pub readout: Readout,
    /// Accept from here on.
    pub threshold: f32,
    /// Sampling where neither the request nor the model says otherwise.
    pub sampling: SamplingOverrides,
    /// What a calibration chose.
    pub tuned: Option<Tuned>,
    /// What the pair knows, where that is narrow.
    pub domain: Option<&'static str>,
    /// A question it can answer.
    pub example: &'static str,
}

/// Two models that work together.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The name users type.
    pub name: String,
    /// The large model.
    pub base: ModelSource,
    /// The small model; without one only the policy `base` runs.
    pub draft: Option<ModelSource>,
    /// Its settings.
    pub settings: PairSettings,
}

/// Where the two models of a catalogue pair can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Compiled in.
    Embedded,
    /// Names for `forerun pull`.
    Models {
        /// The base.
        base: &'static str,
        /// The draft.
        draft: &'static str,
    },
}

/// An entry of the catalogue.
#[derive(Debug, Clone, Copy)]
pub struct CatalogueEntry {
    /// The name users type.
    pub name: &'static str,
    /// One line for `forerun list`.
    pub summary: &'static str,
    /// Where the models come from.
    pub origin: Origin,
}

/// Every pair known by name.
pub const CATALOGUE: &[CatalogueEntry] = &[
    CatalogueEntry {
        name: "tiny",
        summary: "2.0M + 0.4M parameters, embedded; arithmetic word problems only",
        origin: Origin::Embedded,
    },
    CatalogueEntry {
        name: "qwen2.5-coder",
        summary: "Qwen2.5-Coder-Instruct 1.5B + 0.5B, GGUF Q4_K_M",
        origin: Origin::Models { base: "qwen2.5-coder-1.5b", draft: "qwen2.5-coder-0.5b" },
    },
    CatalogueEntry {
        name: "qwq-r1",
        summary: "QwQ-32B + DeepSeek-R1-Distill-Qwen-1.5B (SpecReason §5.1)",
        origin: Origin::Models {
            base: "Qwen/QwQ-32B",
            draft: "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        },
    },
    CatalogueEntry {
        name: "qwq-zr1",
        summary: "QwQ-32B + ZR1-1.5B (SpecReason §5.1)",
        origin: Origin::Models { base: "Qwen/QwQ-32B", draft: "Zyphra/ZR1-1.5B" },
    },
    CatalogueEntry {
        name: "skywork-r1",
        summary: "Skywork-OR1-32B + DeepSeek-R1-Distill-Qwen-1.5B (SpecReason §5.1)",
        origin: Origin::Models {
            base: "Skywork/Skywork-OR1-32B-Preview",
            draft: "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        },
    },
    CatalogueEntry {
        name: "skywork-zr1",
        summary: "Skywork-OR1-32B + ZR1-1.5B (SpecReason §5.1)",
        origin: Origin::Models {
            base: "Skywork/Skywork-OR1-32B-Preview",
            draft: "Zyphra/ZR1-1.5B",
        },
    },
];

const EXAMPLE: &str = "A school buys 3 boxes of 24 pencils and gives 2 pencils to each of its 31 \
                       pupils. How many pencils are left?";

/// The embedded files of one model of the pair `tiny`.
macro_rules! tiny {
    ($role:literal) => {
        &[
            ("config.json", include_bytes!(concat!("../assets/tiny/", $role, "/config.json"))),
            (
                "generation_config.json",
                include_bytes!(concat!("../assets/tiny/", $role, "/generation_config.json")),
            ),
            (
                "model.safetensors",
                include_bytes!(concat!("../assets/tiny/", $role, "/model.safetensors")),
            ),
            (
                "tokenizer.json",
                include_bytes!(concat!("../assets/tiny/", $role, "/tokenizer.json")),
            ),
            (
                "tokenizer_config.json",
                include_bytes!(concat!("../assets/tiny/", $role, "/tokenizer_config.json")),
            ),
        ]
    };
}

static TINY_BASE: &[(&str, &[u8])] = tiny!("base");
static TINY_DRAFT: &[(&str, &[u8])] = tiny!("draft");

impl Pair {
    /// The pair compiled into the program.
    #[must_use]
    pub fn tiny() -> Self {
        Self {
            name: "tiny".into(),
            base: ModelSource::Embedded(TINY_BASE),
            draft: Some(ModelSource::Embedded(TINY_DRAFT)),
            settings: PairSettings::named("tiny").expect("in the catalogue"),
        }
    }

    /// A pair of two models nobody has measured together.
    #[must_use]
    pub fn custom(base: ModelSource, draft: Option<ModelSource>, thinking: Thinking) -> Self {
        let settings = PairSettings::general(thinking);
        Self { name: "custom".into(), base, draft, settings }
    }
}

impl PairSettings {
    /// The settings of a catalogue pair.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let entry = CATALOGUE.iter().find(|e| e.name == name)?;
        Some(match entry.name {
            "tiny" => Self {
                instruction: Some(
                    " Reason step by step, separate the steps with blank lines and box the answer."
                        .into(),
                ),
                judge: JudgeText::Turn {
                    instruction: "Is the last reasoning step correct? Score it with one digit \
                                  from 0 (wrong) to 9 (right)."
                        .into(),
                    prefill: "I think the quality score is: ".into(),
                },
                readout: Readout::Mean,
                threshold: 5.5,
                sampling: SamplingOverrides { temperature: Some(0.0), ..Default::default() },
                tuned: None,
                domain: Some("arithmetic word problems with numbers up to 399"),
                example: "Nina reads 14 pages on Monday, 8 pages on Friday and 23 pages on \
                          Sunday. Tom reads twice as many pages in total. How many pages is that?",
                ..Self::general(Thinking::Tags)
            },
            "qwen2.5-coder" => Self {
                sampling: SamplingOverrides { temperature: Some(0.0), ..Default::default() },
                ..Self::general(Thinking::None)
            },
            _ => Self::general(Thinking::Tags),
        })
    }

    /// The judge of a policy, where a request names none.
    #[must_use]
    pub fn judge_of(&self, policy: PolicyKind) -> JudgeText {
        match policy {
            PolicyKind::Lookahead => JudgeText::built_in("compare").expect("built in"),
            _ => self.judge.clone(),
        }
    }

    /// The paper's settings (§5.1, and the defaults of its code), in our own words.
    #[must_use]
    pub fn general(thinking: Thinking) -> Self {
        Self {
            thinking,
            instruction: Some(
                "\n\nReason step by step. Separate the steps with a blank line. Put the final \
                 answer within \\boxed{}."
                    .into(),
            ),
            judge: JudgeText::built_in("turn").expect("built in"),
            readout: Readout::Greedy,
            threshold: config::THRESHOLD,
            sampling: SamplingOverrides {
                temperature: Some(config::TEMPERATURE),
                top_p: Some(config::TOP_P),
                ..Default::default()
            },
            tuned: None,
            domain: None,
            example: EXAMPLE,
        }
    }
}
