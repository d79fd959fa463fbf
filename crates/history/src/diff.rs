//! What changed between two runs: failures that came and went, and durations that moved by more than noise.

use kiln_model::outcome::Outcome;
use kiln_model::{RunId, StageName};
use serde::Serialize;

use crate::summary::{RunSummary, StageSummary};

/// A duration that moved by less than this part of itself did not move.
const RATIO_THAT_MATTERS: f64 = 1.2;
/// Nor did one that moved by less than this.
const MS_THAT_MATTER: f64 = 200.0;
/// So many past durations are needed to know the noise.
const SAMPLES_THAT_SUFFICE: usize = 4;
/// A deviation beyond so many (robust) standard deviations is no noise.
const DEVIATIONS: f64 = 3.0;

/// What changed from one run to another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunDiff {
    /// The earlier, or the one to compare with.
    pub from: RunId,
    /// The later.
    pub to: RunId,
    /// Whether both tested the same kernel image.
    pub same_kernel: bool,
    /// Whether both ran the same scenario.
    pub same_scenario: bool,
    /// Fail now and did not before.
    pub new_failures: Vec<Change>,
    /// Failed before and pass now.
    pub fixed: Vec<Change>,
    /// Fail in both.
    pub still_failing: Vec<Change>,
    /// Any other change of outcome: skipped now, broken now.
    pub otherwise: Vec<Change>,
    /// Passed in both and took longer or shorter.
    pub durations: Vec<DurationChange>,
    /// Stages only the second run has.
    pub added: Vec<StageName>,
    /// Stages only the first run has.
    pub removed: Vec<StageName>,
    /// Reports of the kernel whose signature the first run does not have.
    pub new_splats: Vec<NewSplat>,
}

/// One stage's outcomes in both runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Which.
    pub stage: StageName,
    /// In the first run; none if it did not end.
    pub from: Option<Outcome>,
    /// In the second run; none if it did not end.
    pub to: Option<Outcome>,
}

/// One stage's durations in both runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DurationChange {
    /// Which.
    pub stage: StageName,
    /// In the first run, in milliseconds.
    pub from_ms: u64,
    /// In the second run, in milliseconds.
    pub to_ms: u64,
    /// The second by the first: above 1 is slower.
    pub ratio: f64,
    /// Whether to believe it.
    pub noise: Noise,
}

/// Whether a change of duration is more than noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Noise {
    /// It lies outside what past runs of this stage show.
    Real,
    /// Past runs vary as much.
    WithinNoise,
    /// There are too few past runs to tell; running it a few times more would.
    TooFewRuns,
}

/// A kernel report that was not there before.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NewSplat {
    /// During which stage, if one ran.
    pub stage: Option<StageName>,
    /// Its signature. Hostile text.
    pub signature: String,
}

impl Noise {
    /// The words for tables.
    pub fn words(self) -> &'static str {
        match self {
            Noise::Real => "more than noise",
            Noise::WithinNoise => "within noise",
            Noise::TooFewRuns => "too few runs to tell",
        }
    }
}

impl RunDiff {
    /// Compares two runs. `past_ms` gives the durations of a stage when it passed in runs before `to`, to know the noise.
    pub fn of(
        from: &RunSummary,
        to: &RunSummary,
        past_ms: impl Fn(&StageName) -> Vec<u64>,
    ) -> RunDiff {
        let mut diff = RunDiff {
            from: from.id.clone(),
            to: to.id.clone(),
            same_kernel: from.kernel == to.kernel,
            same_scenario: from.scenario == to.scenario,
            new_failures: Vec::new(),
            fixed: Vec::new(),
            still_failing: Vec::new(),
            otherwise: Vec::new(),
            durations: Vec::new(),
            added: Vec::new(),
            removed: Vec::new(),
            new_splats: new_splats(from, to),
        };
        for stage in &from.stages {
            if to.stage(&stage.name).is_none() {
                diff.removed.push(stage.name.clone());
            }
        }
        for now in &to.stages {
            match from.stage(&now.name) {
                Some(before) => diff.compare(before, now, &past_ms),
                None => diff.added.push(now.name.clone()),
            }
        }
        diff
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.new_failures.is_empty()
            && self.fixed.is_empty()
            && self.still_failing.is_empty()
            && self.otherwise.is_empty()
            && self.durations.is_empty()
            && self.added.is_empty()
            && self.removed.is_empty()
            && self.new_splats.is_empty()
    }

    fn compare(
        &mut self,
        before: &StageSummary,
        now: &StageSummary,
        past_ms: &impl Fn(&StageName) -> Vec<u64>,
    ) {
        let passed = |stage: &StageSummary| stage.outcome == Some(Outcome::Passed);
        let change = Change {
            stage: now.name.clone(),
            from: before.outcome.clone(),
            to: now.outcome.clone(),
        };
        match (before.failed(), now.failed()) {
            (true, true) => self.still_failing.push(change),
            (false, true) => self.new_failures.push(change),
            (true, false) if passed(now) => self.fixed.push(change),
            _ if before.word() != now.word() => self.otherwise.push(change),
            _ => {}
        }
        if passed(before) && passed(now) {
            self.durations.extend(duration_change(before, now, past_ms));
        }
    }
}

fn duration_change(
    before: &StageSummary,
    now: &StageSummary,
    past_ms: &impl Fn(&StageName) -> Vec<u64>,
) -> Option<DurationChange> {
    let (from, to) = (as_f64(before.took_ms), as_f64(now.took_ms));
    let ratio = to.max(1.0) / from.max(1.0);
    let moved = ratio >= RATIO_THAT_MATTERS || ratio <= 1.0 / RATIO_THAT_MATTERS;
    if !moved || (to - from).abs() < MS_THAT_MATTER {
        return None;
    }
    Some(DurationChange {
        stage: now.name.clone(),
        from_ms: before.took_ms,
        to_ms: now.took_ms,
        ratio,
        noise: noise(&past_ms(&now.name), to),
    })
}

/// Compares with the median of the past, in units of its median absolute deviation: one slow outlier in the
/// past must not hide a regression.
fn noise(past_ms: &[u64], now: f64) -> Noise {
    if past_ms.len() < SAMPLES_THAT_SUFFICE {
        return Noise::TooFewRuns;
    }
    let past: Vec<f64> = past_ms.iter().map(|&ms| as_f64(ms)).collect();
    let middle = median(past.clone());
    let deviation = median(past.iter().map(|ms| (ms - middle).abs()).collect());
    // 1.4826 makes the median absolute deviation a standard deviation where noise is normal; perfectly
    // even past runs still have some.
    let sigma = (1.4826 * deviation).max(0.05 * middle);
    if (now - middle).abs() > DEVIATIONS * sigma { Noise::Real } else { Noise::WithinNoise }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match (values.get(half), values.len() % 2) {
        (None, _) => 0.0,
        (Some(middle), 1) => *middle,
        (Some(upper), _) => (values[half - 1] + upper) / 2.0,
    }
}

/// Milliseconds up to 49 days, which no stage takes.
fn as_f64(ms: u64) -> f64 {
    f64::from(u32::try_from(ms).unwrap_or(u32::MAX))
}

fn new_splats(from: &RunSummary, to: &RunSummary) -> Vec<NewSplat> {
    let all = |run: &RunSummary| -> Vec<NewSplat> {
        let of_stages = run.stages.iter().flat_map(|stage| {
            stage.splats.iter().map(|splat| (Some(stage.name.clone()), splat.signature.clone()))
        });
        let others = run.splats.iter().map(|splat| (None, splat.signature.clone()));
        of_stages.chain(others).map(|(stage, signature)| NewSplat { stage, signature }).collect()
    };
    let known = all(from);
    let mut new: Vec<NewSplat> = Vec::new();
    for splat in all(to) {
        let same = |other: &NewSplat| other.signature == splat.signature;
        if !known.iter().any(same) && !new.iter().any(same) {
            new.push(splat);
        }
    }
    new
}

/// For people: one line per change, what matters most first.
impl std::fmt::Display for RunDiff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let outcome = |outcome: &Option<Outcome>| match outcome {
            Some(outcome) => kiln_model::hostile::one_line(&outcome.to_string(), 200),
            None => "did not end".into(),
        };
        let lists = [
            ("new failure", &self.new_failures),
            ("still failing", &self.still_failing),
            ("fixed", &self.fixed),
            ("changed", &self.otherwise),
        ];
        for (what, changes) in lists {
            for change in changes {
                let (from, to) = (outcome(&change.from), outcome(&change.to));
                writeln!(f, "{what:<14} {}: {from} -> {to}", change.stage)?;
            }
        }
        for splat in &self.new_splats {
            let signature = kiln_model::hostile::one_line(&splat.signature, 200);
            match &splat.stage {
                Some(stage) => writeln!(f, "{:<14} {stage}: {signature}", "new splat")?,
                None => writeln!(f, "{:<14} {signature}", "new splat")?,
            }
        }
        for change in &self.durations {
            let what = if change.ratio > 1.0 { "slower" } else { "faster" };
            let (from, to) = (as_f64(change.from_ms) / 1000.0, as_f64(change.to_ms) / 1000.0);
            writeln!(
                f,
                "{what:<14} {}: {from:.1} s -> {to:.1} s ({:.2}x, {})",
                change.stage,
                change.ratio,
                change.noise.words()
            )?;
        }
        for stage in &self.added {
            writeln!(f, "{:<14} {stage}", "added")?;
        }
        for stage in &self.removed {
            writeln!(f, "{:<14} {stage}", "removed")?;
        }
        if self.is_empty() {
            writeln!(f, "no difference")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    fn run(id: &str, outcomes: &[Outcome]) -> RunSummary {
        crate::summary::of_events(&sample::events(id, outcomes))
    }

    fn failed() -> Outcome {
        Outcome::Failed { reason: "exit status 1".into() }
    }

    #[test]
    fn a_difference_reads_as_lines_with_what_matters_first() {
        let crash = Outcome::Crashed { signature: "panic: sysrq triggered crash".into() };
        let mut before =
            run("20260101-000000-0001", &[Outcome::Passed, failed(), failed(), Outcome::Passed]);
        let mut after =
            run("20260102-000000-0002", &[crash, Outcome::Passed, failed(), Outcome::Passed]);
        before.stages[3].took_ms = 1000;
        after.stages[3].took_ms = 2500;
        before.stages[0].name = "raid5".parse().unwrap();
        after.stages[0].name = "raid5".parse().unwrap();
        let mut gone = before.stages[0].clone();
        gone.name = "gone".parse().unwrap();
        before.stages.push(gone.clone());
        gone.name = "came".parse().unwrap();
        after.stages.push(gone);
        let diff = RunDiff::of(&before, &after, |_| vec![1000, 1010, 990, 1005]);
        insta::assert_snapshot!(diff, @r"
        new failure    raid5: passed -> crashed (panic: sysrq triggered crash)
        still failing  stage-3: failed (exit status 1) -> failed (exit status 1)
        fixed          stage-2: failed (exit status 1) -> passed
        new splat      raid5: panic: sysrq triggered crash
        slower         stage-4: 1.0 s -> 2.5 s (2.50x, more than noise)
        added          came
        removed        gone
        ");
        assert!(RunDiff::of(&before, &before, |_| Vec::new()).still_failing.len() == 2);
    }

    #[test]
    fn a_run_does_not_differ_from_a_passing_one_like_it() {
        let one = run("20260101-000000-0001", &[Outcome::Passed]);
        let diff = RunDiff::of(&one, &one, |_| Vec::new());
        assert!(diff.is_empty());
        assert_eq!(diff.to_string(), "no difference\n");
    }

    #[test]
    fn a_slower_stage_is_believed_only_outside_the_noise_of_its_past() {
        assert_eq!(noise(&[100, 100, 100], 900.0), Noise::TooFewRuns);
        assert_eq!(noise(&[1000, 1400, 900, 1800, 1200], 1700.0), Noise::WithinNoise);
        assert_eq!(noise(&[1000, 1010, 990, 9000, 1005], 1700.0), Noise::Real);
    }
}
