//! Final answers: finding one in a text, and telling whether two mean the same.
//!
//! Evaluation compares thousands of free-form answers with references, so the rules are few and
//! fixed: numbers are compared as exact fractions, all else as normalised LaTeX. Invariant:
//! nothing is rounded: 0.333 is not 1/3. Read next: `reasoning`, which drops the thoughts first.

use std::ops::Range;

/// The last answer in `text`: the last balanced `\boxed{…}`, else what follows the last `####`,
/// else what follows the last "the answer is". Trailing punctuation is dropped.
#[must_use]
pub fn extract(text: &str) -> Option<String> {
    let found = boxed(text).or_else(|| after_hashes(text)).or_else(|| after_phrase(text))?;
    let answer = clean(found);
    (!answer.is_empty()).then(|| answer.to_owned())
}

/// The reference answer of a GSM8K item: what follows the last `####`, without thousands commas.
#[must_use]
pub fn extract_gsm8k(answer: &str) -> Option<String> {
    let number = clean(after_hashes(answer)?).replace(',', "");
    (!number.is_empty()).then_some(number)
}

/// True if two answers are the same number or the same expression up to LaTeX spelling. An empty
/// answer equals nothing.
#[must_use]
pub fn equal(a: &str, b: &str) -> bool {
    let (a, b) = (clean(a), clean(b));
    if a.is_empty() || b.is_empty() {
        return false;
    }
    if a == b {
        return true;
    }
    // The normaliser recurses into groups; nobody's final answer is this long.
    if a.len() > ANSWER_BYTES_MAX || b.len() > ANSWER_BYTES_MAX {
        return false;
    }
    let (a, b) = (normalise(a), normalise(b));
    if let (Some(a), Some(b)) = (number(&a), number(&b)) {
        return a == b;
    }
    if let (Some(a), Some(b)) = (tuple(&a), tuple(&b)) {
        return a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| equal(a, b));
    }
    let (a, b) = (spelling(&a), spelling(&b));
    !a.is_empty() && a.eq_ignore_ascii_case(&b)
}

const ANSWER_BYTES_MAX: usize = 2048;

fn boxed(text: &str) -> Option<&str> {
    const NAMES: [&str; 2] = ["\\boxed", "\\fbox"];
    let mut open: Vec<(usize, bool)> = Vec::new();
    let mut best: Option<Range<usize>> = None;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' if !escaped => {
                let before = text[..at].trim_end();
                open.push((at + 1, NAMES.iter().any(|name| before.ends_with(name))));
            }
            b'}' if !escaped => {
                if let Some((start, true)) = open.pop()
                    && best.as_ref().is_none_or(|best| start > best.start)
                {
                    best = Some(start..at);
                }
            }
            _ => {}
        }
        escaped = byte == b'\\' && !escaped;
    }
    // `\boxed 5`, without braces.
    if let Some(at) = text.rfind("\\boxed ")
        && best.as_ref().is_none_or(|best| at > best.start)
    {
        let rest = text[at + "\\boxed ".len()..].trim_start();
        let end = rest.find(|c: char| c.is_whitespace() || c == '$').unwrap_or(rest.len());
        if end > 0 && !rest.starts_with('{') {
            return Some(&rest[..end]);
        }
    }
    best.map(|range| &text[range])
}

fn after_hashes(text: &str) -> Option<&str> {
    let at = text.rfind("####")?;
    text[at + 4..].lines().next()
}

fn after_phrase(text: &str) -> Option<&str> {
    const PHRASE: &str = "the answer is";
    let bytes = text.as_bytes();
    let at = (0..bytes.len().saturating_sub(PHRASE.len() - 1))
        .rev()
        .find(|&at| bytes[at..at + PHRASE.len()].eq_ignore_ascii_case(PHRASE.as_bytes()))?;
    let rest = text[at + PHRASE.len()..].trim_start_matches([':', ' ', '\n']);
    let line = rest.lines().next()?;
    // The sentence ends at a mark that white space follows: `3.5` goes on.
    let end = line
        .match_indices(['.', '!', '?', ';'])
        .map(|(end, _)| end)
        .find(|&end| line[end + 1..].starts_with(' '));
    Some(&line[..end.unwrap_or(line.len())])
}

/// Without surrounding white space, emphasis, dollar signs of math mode and final punctuation.
fn clean(text: &str) -> &str {
    let mut text = text.trim();
    loop {
        let before = text;
        text = text.trim_end_matches(['.', ',', ';', ':']).trim();
        for (open, close) in
            [("**", "**"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")]
        {
            let inner = text.strip_prefix(open).and_then(|inner| inner.strip_suffix(close));
            text = inner.map_or(text, str::trim);
        }
        if text == before {
            return text;
        }
    }
}

/// Words set as text stand between these, so that units can be told from the number.
const WORDS_OPEN: char = '\u{1}';
const WORDS_CLOSE: char = '\u{2}';

/// One spelling for each thing LaTeX can say in several ways.
fn normalise(text: &str) -> String {
    let text = text
        .replace("^{\\circ}", "")
        .replace("^\\circ", "")
        .replace("{,}", ",")
        .replace("\\\\", " ")
        .replace('\u{2212}', "-");
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(char) = rest.chars().next() {
        let after = &rest[char.len_utf8()..];
        rest = match char {
            '\\' => command(after, &mut out),
            '$' | '%' | '°' | '€' | '£' | '~' => after,
            _ if char.is_whitespace() => {
                out.push(' ');
                after
            }
            _ => {
                out.push(char);
                after
            }
        };
    }
    out.trim().to_owned()
}

/// Writes what one command means; returns the text after it. `rest` follows the backslash.
fn command<'a>(rest: &'a str, out: &mut String) -> &'a str {
    let name_len = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
    let (name, after) = rest.split_at(name_len);
    match name {
        "" => {
            let Some(char) = rest.chars().next() else { return "" };
            match char {
                '{' | '}' => out.extend(['\\', char]),
                ' ' => out.push(' '),
                // Spacing, dollar and percent signs, math-mode delimiters.
                _ => {}
            }
            &rest[char.len_utf8()..]
        }
        "left" | "right" => after.strip_prefix('.').unwrap_or(after),
        "quad" | "qquad" | "space" => {
            out.push(' ');
            after
        }
        "displaystyle" | "circ" | "degree" | "dollar" => after,
        "cdot" | "times" => {
            out.push('*');
            after
        }
        "frac" | "dfrac" | "tfrac" | "cfrac" => {
            let (top, after) = argument(after);
            let (bottom, after) = argument(after);
            out.push_str(&format!("\\frac{{{}}}{{{}}}", normalise(top), normalise(bottom)));
            after
        }
        "sqrt" if !after.starts_with('[') => {
            let (inner, after) = argument(after);
            out.push_str(&format!("\\sqrt{{{}}}", normalise(inner)));
            after
        }
        "text" | "mathrm" | "textbf" | "mathbf" | "mbox" | "textrm" | "textit" | "operatorname" => {
            let (inner, after) = argument(after);
            out.push(WORDS_OPEN);
            out.push_str(&normalise(inner));
            out.push(WORDS_CLOSE);
            after
        }
        _ => {
            let name = match name {
                "leq" => "le",
                "geq" => "ge",
                "neq" => "ne",
                name => name,
            };
            out.push('\\');
            out.push_str(name);
            after
        }
    }
}

/// The next argument of a command, without its braces, and the text after it. An argument
/// without braces is one character or one command.
fn argument(rest: &str) -> (&str, &str) {
    let rest = rest.trim_start();
    let Some(first) = rest.chars().next() else { return ("", "") };
    if first != '{' {
        let len = match rest.strip_prefix('\\') {
            Some(name) => 1 + name.bytes().take_while(u8::is_ascii_alphabetic).count().max(1),
            None => first.len_utf8(),
        };
        return rest.split_at_checked(len).unwrap_or((rest, ""));
    }
    let mut depth = 0_usize;
    for (at, byte) in rest.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return (&rest[1..at], &rest[at + 1..]);
        }
    }
    (&rest[1..], "")
}

/// For comparing as text: no spaces, words unwrapped, no left-hand side.
fn spelling(normal: &str) -> String {
    let text: String = normal
        .chars()
        .filter(|c| !c.is_whitespace() && !matches!(*c, WORDS_OPEN | WORDS_CLOSE))
        .collect();
    without_name(&text).to_owned()
}

/// `x=5` is the answer 5.
fn without_name(text: &str) -> &str {
    match text.split_once('=') {
        Some((name, value)) if !value.contains('=') => {
            let name = name.trim();
            let short = name.len() <= 2 && !name.is_empty();
            if short && name.bytes().all(|c| c.is_ascii_alphabetic()) { value.trim() } else { text }
        }
        _ => text,
    }
}

/// The items of `(a, b)` or `[a, b]`, brackets included in the comparison by their kind.
fn tuple(normal: &str) -> Option<Vec<String>> {
    let open = normal.chars().next().filter(|c| matches!(c, '(' | '['))?;
    let close = normal.chars().next_back().filter(|c| matches!(c, ')' | ']'))?;
    let inner = normal.get(1..normal.len() - 1)?;
    let mut items = vec![format!("\\{{{open}{close}")];
    let (mut depth, mut start) = (0_i32, 0);
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            b',' if depth == 0 => {
                items.push(inner[start..at].to_owned());
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(inner[start..].to_owned());
    (items.len() > 2).then_some(items)
}

/// An exact fraction in lowest terms, the denominator positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ratio {
    top: i128,
    bottom: i128,
}

impl Ratio {
    fn new(top: i128, bottom: i128) -> Option<Self> {
        let (mut a, mut b) = (top.checked_abs()?, bottom.checked_abs()?);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        if bottom == 0 {
            return None;
        }
        let divisor = a.max(1) * bottom.signum();
        Some(Self { top: top / divisor, bottom: bottom / divisor })
    }

    fn times(self, other: Self) -> Option<Self> {
        let top = self.top.checked_mul(other.top)?;
        Self::new(top, self.bottom.checked_mul(other.bottom)?)
    }

    fn over(self, other: Self) -> Option<Self> {
        self.times(Self::new(other.bottom, other.top)?)
    }

    fn plus(self, other: Self) -> Option<Self> {
        let top =
            self.top.checked_mul(other.bottom)?.checked_add(other.top.checked_mul(self.bottom)?)?;
        Self::new(top, self.bottom.checked_mul(other.bottom)?)
    }

    fn power(self, exponent: i32) -> Option<Self> {
        let count = exponent.unsigned_abs();
        let raised = Self::new(self.top.checked_pow(count)?, self.bottom.checked_pow(count)?)?;
        if exponent < 0 { Self::new(1, 1)?.over(raised) } else { Some(raised) }
    }
}

/// The number a normalised answer stands for, its unit dropped.
fn number(normal: &str) -> Option<Ratio> {
    // Units set as text: drop them; if nothing is left, the words are the answer.
    let mut text = String::new();
    let mut words = 0;
    for char in normal.chars() {
        match char {
            WORDS_OPEN => words += 1,
            WORDS_CLOSE => words -= 1,
            _ if words == 0 => text.push(char),
            _ => {}
        }
    }
    let text =
        if text.trim().is_empty() { normal.replace([WORDS_OPEN, WORDS_CLOSE], "") } else { text };
    // An exponent of a unit may stay behind: `5 \text{ cm}^2`.
    let text = match (words_end(normal), text.trim_end().strip_suffix(['2', '3'])) {
        (true, Some(base)) if base.ends_with('^') => base.trim_end_matches('^').to_owned(),
        _ => text,
    };
    let text = without_unit(without_name(text.trim()).trim());
    signed(text)
}

/// True if words are followed by nothing but an exponent.
fn words_end(normal: &str) -> bool {
    normal.rsplit_once(WORDS_CLOSE).is_some_and(|(_, tail)| tail.trim_start().starts_with('^'))
}

/// Drops a unit in plain words: `12 dollars`, `5 km/h`.
fn without_unit(text: &str) -> &str {
    let Some(end) = text.rfind(|c: char| c.is_ascii_digit() || c == '}') else { return text };
    let (value, unit) = text.split_at(end + 1);
    let letters = unit.chars().filter(|c| c.is_alphabetic()).count();
    let plain = unit.chars().all(|c| c.is_alphabetic() || matches!(c, ' ' | '/' | '.' | '-'));
    if unit.starts_with(' ') && letters >= 2 && plain { value } else { text }
}

fn signed(text: &str) -> Option<Ratio> {
    let text = text.trim();
    match text.strip_prefix('-') {
        Some(rest) => unsigned(rest.trim())?.times(Ratio::new(-1, 1)?),
        None => unsigned(text.strip_prefix('+').unwrap_or(text).trim()),
    }
}

fn unsigned(text: &str) -> Option<Ratio> {
    if let Some(number) = decimal(text) {
        return Some(number);
    }
    if let Some(at) = text.find("\\frac") {
        let (top, rest) = argument(&text[at + "\\frac".len()..]);
        let (bottom, rest) = argument(rest);
        if !rest.trim().is_empty() {
            return None;
        }
        let fraction = signed(top)?.over(signed(bottom)?)?;
        let whole = text[..at].trim();
        // A mixed number; a product would need its sign.
        return if whole.is_empty() { Some(fraction) } else { decimal(whole)?.plus(fraction) };
    }
    if let Some((top, bottom)) = text.split_once('/') {
        let (whole, top) = top.trim().rsplit_once(' ').unwrap_or(("", top.trim()));
        let fraction = decimal(top)?.over(signed(bottom)?)?;
        return if whole.is_empty() { Some(fraction) } else { decimal(whole)?.plus(fraction) };
    }
    if let Some((mantissa, power)) = text.split_once('*') {
        return decimal(mantissa.trim())?.times(raised(power)?);
    }
    if let Some((mantissa, exponent)) = text.split_once(['e', 'E']) {
        return decimal(mantissa)?.times(Ratio::new(10, 1)?.power(exponent.parse().ok()?)?);
    }
    raised(text)
}

/// `10^{3}`, `10^3`, `2^{-1}`.
fn raised(text: &str) -> Option<Ratio> {
    let (base, exponent) = text.split_once('^')?;
    let exponent = exponent.trim();
    let exponent =
        exponent.strip_prefix('{').map_or(Some(exponent), |inner| inner.strip_suffix('}'))?;
    decimal(base.trim())?.power(exponent.trim().parse().ok()?)
}

/// Digits with an optional decimal part and thousands commas.
fn decimal(text: &str) -> Option<Ratio> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let mut groups = whole.split(',');
    let mut digits = groups.next().unwrap_or("").to_owned();
    for group in groups {
        if group.len() != 3 || digits.is_empty() {
            return None;
        }
        digits.push_str(group);
    }
    if digits.is_empty() && part.is_empty() {
        return None;
    }
    let part = part.trim_end_matches('0');
    digits.push_str(part);
    if !digits.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let top = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    Ratio::new(top, 10_i128.checked_pow(u32::try_from(part.len()).ok()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_balanced_box_wins() {
        for (text, answer) in [
            ("so \\boxed{4} and \\boxed{\\frac{1}{2}}.", Some("\\frac{1}{2}")),
            ("\\boxed{3} then \\boxed{un{closed}", Some("3")),
            ("\\boxed{\\boxed{7}}", Some("7")),
            ("\\boxed{\\{1, 2\\}}", Some("\\{1, 2\\}")),
            ("it is \\boxed 5 indeed", Some("5")),
            ("\\boxed{42.}", Some("42")),
            ("#### 1,234\nbye", Some("1,234")),
            ("The answer is 3. No: the ANSWER is $3.50$. Done", Some("3.50")),
            ("The answer is: **12**.", Some("12")),
            ("the answer is\n\n7", Some("7")),
            ("\\boxed{}", None),
            ("nothing here", None),
            ("", None),
        ] {
            assert_eq!(extract(text).as_deref(), answer, "{text}");
        }
    }

    #[test]
    fn gsm8k_references_lose_their_commas() {
        assert_eq!(extract_gsm8k("a <<1+1=2>>\n#### 12,345").as_deref(), Some("12345"));
        assert_eq!(extract_gsm8k("no marker"), None);
    }

    #[test]
    fn spellings_of_one_value_are_equal() {
        for (a, b) in [
            ("1,234", "1234"),
            ("$1,234.50", "1234.5"),
            ("\\$18", "18"),
            ("50\\%", "50"),
            ("50%", "50.0"),
            ("12 dollars", "12"),
            ("12\\text{ dollars}", "12"),
            ("5\\text{ cm}^2", "5"),
            ("5 \\mathrm{km/h}", "5"),
            ("3.0", "3"),
            (".5", "\\frac12"),
            ("0.5", "1/2"),
            ("\\dfrac{1}{2}", "\\frac{2}{4}"),
            ("-\\frac{3}{4}", "\\frac{-3}{4}"),
            ("1\\frac{1}{2}", "1.5"),
            ("1 1/2", "3/2"),
            ("1.5e3", "1500"),
            ("1.5 \\times 10^{3}", "1500"),
            ("10^{-2}", "0.01"),
            ("x = 5", "5"),
            ("90^\\circ", "90"),
            ("90^{\\circ}", "90°"),
            ("\\left(1, \\frac{1}{2}\\right)", "(1,0.5)"),
            ("10{,}000", "10,000"),
            ("10\\,000", "10000"),
            ("2\\sqrt{3}", "2\\sqrt3"),
            ("\\text{(A)}", "(A)"),
            ("\\text{Evelyn}", "evelyn"),
            ("x \\leq 3", "x\\le 3"),
            ("−7", "-7"),
            ("+7", "7"),
            ("$\\pi$", "\\pi"),
        ] {
            assert!(equal(a, b), "{a} = {b}");
            assert!(equal(b, a), "{b} = {a}");
        }
    }

    #[test]
    fn different_values_stay_different() {
        for (a, b) in [
            ("1/3", "0.333"),
            ("12", "13"),
            ("-5", "5"),
            ("1,23", "123"),
            ("(1,2)", "(2,1)"),
            ("(1,2)", "[1,2]"),
            ("2x", "2"),
            ("11/2", "1 1/2"),
            ("", ""),
            ("1/0", "2/0"),
            ("\\pi", "\\phi"),
            ("10^2", "102"),
        ] {
            assert!(!equal(a, b), "{a} ≠ {b}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(a in "\\PC{0,60}", b in "[-\\\\{}()0-9a-z.,/^$ ]{0,60}") {
            let _ = extract(&a);
            let _ = extract(&format!("\\boxed{{{b}"));
            let _ = equal(&a, &b);
            prop_assert_eq!(equal(&b, &b), !clean(&b).is_empty());
        }

        #[test]
        fn fractions_compare_as_their_quotients(
            a in -999_i32..1000, b in 1_i32..200, c in -999_i32..1000, d in 1_i32..200,
            times in 1_i32..50,
        ) {
            let multiple = format!("\\frac{{{}}}{{{}}}", a * times, b * times);
            let fraction = format!("{a}/{b}");
            prop_assert!(equal(&fraction, &multiple));
            let same = i64::from(a) * i64::from(d) == i64::from(c) * i64::from(b);
            prop_assert_eq!(equal(&format!("{a}/{b}"), &format!("\\frac{{{c}}}{{{d}}}")), same);
        }
    }
}
