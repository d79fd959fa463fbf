//! A reader of the text exposition format that forgives nothing, for tests.

use std::collections::HashSet;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Debug)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: Vec<(String, String)>,
    pub(super) value: f64,
}

#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: String,
    pub(super) help: String,
    pub(super) kind: Kind,
    pub(super) samples: Vec<Sample>,
}

impl Family {
    /// The sample of that name with exactly these labels.
    pub(super) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let same = |sample: &&Sample| {
            let own = sample.labels.iter().map(|(name, text)| (name.as_str(), text.as_str()));
            sample.name == name && own.eq(labels.iter().copied())
        };
        self.samples.iter().find(same).map(|sample| sample.value)
    }
}

/// All families, or which line is wrong and why.
pub(super) fn parse(text: &str) -> Result<Vec<Family>, String> {
    let mut families: Vec<Family> = Vec::new();
    let mut series = HashSet::new();
    if !text.ends_with('\n') {
        return Err("the last line has no end".to_owned());
    }
    let mut lines = text[..text.len() - 1].split('\n').enumerate();
    while let Some((number, line)) = lines.next() {
        let wrong = |why: &str| format!("line {}: {why}: {line}", number + 1);
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').ok_or_else(|| wrong("no help"))?;
            let (_, line) = lines.next().ok_or_else(|| wrong("no type"))?;
            let kind = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '));
            let kind = match kind {
                Some((of, "counter")) if of == name => Kind::Counter,
                Some((of, "gauge")) if of == name => Kind::Gauge,
                Some((of, "histogram")) if of == name => Kind::Histogram,
                _ => return Err(wrong("its type does not follow")),
            };
            is_name(name).then_some(()).ok_or_else(|| wrong("no name"))?;
            if families.iter().any(|family| family.name == name) {
                return Err(wrong("a family told of twice"));
            }
            let (name, help) = (name.to_owned(), help.to_owned());
            families.push(Family { name, help, kind, samples: Vec::new() });
            continue;
        }
        let family = families.last_mut().ok_or_else(|| wrong("a sample without a family"))?;
        let sample = sample(line).ok_or_else(|| wrong("not a sample"))?;
        let suffix =
            sample.name.strip_prefix(&family.name).ok_or_else(|| wrong("another family's"))?;
        let fits = match family.kind {
            Kind::Histogram => ["_bucket", "_sum", "_count"].contains(&suffix),
            Kind::Counter | Kind::Gauge => suffix.is_empty(),
        };
        if !fits || !series.insert((sample.name.clone(), sample.labels.clone())) {
            return Err(wrong("not of its family, or there already"));
        }
        if family.kind != Kind::Gauge && (sample.value < 0.0 || sample.value.is_nan()) {
            return Err(wrong("less than nothing"));
        }
        family.samples.push(sample);
    }
    families
        .iter()
        .filter(|family| family.kind == Kind::Histogram)
        .try_for_each(check_histograms)?;
    Ok(families)
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels: Vec<(String, String)> = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"")?;
            let (text, after) = quoted(after)?;
            let unused = !labels.iter().any(|(known, _)| known == label);
            (is_name(label) && unused).then_some(())?;
            labels.push((label.to_owned(), text));
            match after.split_at_checked(1)? {
                (",", after) => rest = after,
                ("}", after) => break rest = after,
                _ => return None,
            }
        }
    }
    let value = rest.strip_prefix(' ')?;
    let digits = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | 'e');
    (is_name(name) && !value.is_empty() && value.chars().all(digits)).then_some(())?;
    Some(Sample { name: name.to_owned(), labels, value: value.parse().ok()? })
}

/// A label's text, and what comes after its closing quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    loop {
        match chars.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => value.push(match chars.next()?.1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                _ => return None,
            }),
            (_, c) => value.push(c),
        }
    }
}

/// Bounds ascend, counts do not descend, the last is infinite and the same as `_count`.
fn check_histograms(family: &Family) -> Result<(), String> {
    let mut at = family.samples.iter().peekable();
    while let Some(first) = at.peek() {
        let series: Vec<_> =
            first.labels.iter().filter(|(name, _)| name != "le").cloned().collect();
        let wrong = |why: &str| format!("{} of {series:?}: {why}", family.name);
        let mut last = (f64::NEG_INFINITY, 0.0);
        while let Some(bucket) = at.next_if(|sample| sample.name.ends_with("_bucket")) {
            let (le, others): (Vec<_>, Vec<_>) =
                bucket.labels.iter().cloned().partition(|(name, _)| name == "le");
            let bound = match le.first().map(|(_, le)| le.as_str()) {
                Some("+Inf") => f64::INFINITY,
                Some(le) => le.parse().map_err(|_| wrong("a bound is no number"))?,
                None => return Err(wrong("a bucket has no bound")),
            };
            if others != series || bound <= last.0 || bucket.value < last.1 {
                return Err(wrong("its buckets do not ascend"));
            }
            last = (bound, bucket.value);
        }
        let sum = at.next().filter(|sample| sample.name.ends_with("_sum"));
        let count = at.next().filter(|sample| sample.name.ends_with("_count"));
        let (Some(sum), Some(count)) = (sum, count) else { return Err(wrong("no sum or count")) };
        let complete = last.0.is_infinite() && last.1.total_cmp(&count.value).is_eq();
        if !complete || sum.labels != series || count.labels != series {
            return Err(wrong("its parts and its whole differ"));
        }
    }
    Ok(())
}

#[test]
fn the_strict_reader_forgives_nothing() {
    let good = "# HELP a_total x.\n# TYPE a_total counter\na_total{b=\"\\\\\\\"\\n\",c=\"\"} 1.5\n";
    assert_eq!(parse(good).unwrap()[0].samples[0].labels[0].1, "\\\"\n");
    let head = "# HELP h x.\n# TYPE h histogram\n";
    let histogram = |lines: &str| parse(&format!("{head}{lines}"));
    histogram("h_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n").unwrap();
    for bad in [
        "h_bucket{le=\"1\"} 3\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n",
        "h_bucket{le=\"2\"} 1\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n",
        "h_bucket{le=\"1\"} 2\nh_sum 3\nh_count 2\n",
        "h_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 1\n",
    ] {
        histogram(bad).unwrap_err();
    }
    for (from, to) in [
        ("1.5\n", "1.5"),
        ("1.5", " 1.5"),
        ("1.5", "x"),
        ("a_total{", "b{"),
        ("\\\\", "\\x"),
        ("c=", "b="),
        ("# TYPE a_total counter\n", ""),
        ("counter", "summary"),
        ("} 1.5\n", "} 1.5\na_total{b=\"\\\\\\\"\\n\",c=\"\"} 2\n"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert!(parse(&bad).is_err(), "{bad}");
    }
}
