//! Waiting: for a machine to come up, and for a stage on it to end.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_model::StageName;
use kiln_model::event::{Happening, OutputSource};
use kiln_model::hostile;
use kiln_model::job::{KeepDisks, Stage, Suite};
use kiln_model::outcome::Outcome;

use super::disks::Kept;
use super::flood::{BUDGET, Flood};
use super::machine::{News, Saved};
use super::{Aftermath, Execution, LAST_LOOK, Live};
use crate::sink::{EventSink, note, tell};
use crate::stop::Urgency;
use crate::watch::{Ending, Gone, Limits, Sign, Watch, judge_ending, judge_exit};

/// How often the stop token is looked at.
const GLANCE: Duration = Duration::from_millis(100);
/// How long the kernel may take to say where it stands.
const DIAGNOSIS: Duration = Duration::from_secs(3);
/// Most bytes of kernel log kept with one stage.
const DMESG_BYTES: u64 = 8 << 20;
/// How much of a terminal's end is looked through for a script's last words.
const LAST_WORDS: usize = 400;

/// A machine's console on its way into events.
#[derive(Debug)]
pub(super) struct Console {
    vm: u32,
    flood: Flood,
    reported: u64,
    /// The last of what it said, for explaining a boot that failed.
    tail: Vec<u8>,
}

impl Console {
    pub(super) fn new(vm: u32) -> Console {
        Console { vm, flood: Flood::new(BUDGET), reported: 0, tail: Vec::new() }
    }

    fn take(
        &mut self,
        sink: &mut dyn EventSink,
        stage: Option<&StageName>,
        now: Duration,
        bytes: &[u8],
    ) {
        keep_tail(&mut self.tail, bytes);
        if let Some(text) = self.flood.push(now, bytes) {
            tell(sink, output(stage, OutputSource::Console, text));
        }
    }

    fn due(&mut self, sink: &mut dyn EventSink, stage: Option<&StageName>, now: Duration) {
        if let Some(text) = self.flood.due(now) {
            tell(sink, output(stage, OutputSource::Console, text));
        }
    }

    pub(super) fn finish(&mut self, sink: &mut dyn EventSink, stage: Option<&StageName>) {
        if let Some(text) = self.flood.finish() {
            tell(sink, output(stage, OutputSource::Console, text));
        }
        let dropped = self.flood.dropped() - self.reported;
        if dropped > 0 {
            self.reported = self.flood.dropped();
            let text = format!("console of machine {} dropped: {dropped} bytes", self.vm);
            crate::sink::note(sink, kiln_model::event::NoteLevel::Warning, text);
        }
    }

    /// The last line that says something.
    fn last_line(&self) -> Option<String> {
        last_line(&self.tail)
    }
}

fn output(stage: Option<&StageName>, source: OutputSource, text: String) -> Happening {
    Happening::Output { stage: stage.cloned(), source, text }
}

fn keep_tail(tail: &mut Vec<u8>, bytes: &[u8]) {
    tail.extend_from_slice(&bytes[bytes.len().saturating_sub(LAST_WORDS)..]);
    let surplus = tail.len().saturating_sub(LAST_WORDS);
    tail.drain(..surplus);
}

/// The last line that says something, as plain text.
fn last_line(tail: &[u8]) -> Option<String> {
    let text = hostile::without_sequences(&String::from_utf8_lossy(tail));
    let line = text.lines().rev().find(|line| line.chars().any(char::is_alphanumeric))?;
    Some(hostile::one_line(line.trim(), 200))
}

impl Execution<'_> {
    /// Waits for the agent's hello.
    pub(super) fn await_ready(&mut self, live: &mut Live) -> Result<(), Outcome> {
        let machine = &self.spec.machine;
        let timeout = Duration::from_millis(machine.boot_timeout_ms);
        // Until the agent is there, nothing promises to beat, so silence alone is no hang.
        let mut watch = Watch::new(self.now(), Limits::of(timeout, timeout * 2));
        let mut artifacts = Artifacts::default();
        loop {
            let now = self.now();
            live.console.due(self.sink, None, now);
            if let Some(ending) = watch.ending(now) {
                return Err(self.judge_boot(live, &ending, &mut artifacts));
            }
            // No stage runs yet that could be let finish.
            if self.stop.urgency() > Urgency::GoOn {
                return Err(Outcome::NotRun { reason: "interrupted".to_owned() });
            }
            let patience = watch.wake_at().saturating_sub(now).min(GLANCE);
            match live.machine.next(patience) {
                Some(News::Ready { boot_ms, boot_cpu_ms, restored, prepared }) => {
                    live.prepared = prepared;
                    let vm = live.number;
                    tell(self.sink, Happening::VmReady { vm, boot_ms, boot_cpu_ms, restored });
                    return Ok(());
                }
                Some(News::Failed(reason)) => return Err(Outcome::Broken { reason }),
                Some(News::Told(level, text)) => note(self.sink, level, text),
                Some(News::Sign(sign)) => {
                    let now = self.now();
                    watch.see(now, &sign);
                    self.tell_sign(live, None, now, sign);
                }
                None => {}
            }
        }
    }

    fn judge_boot(
        &mut self,
        live: &mut Live,
        ending: &Ending,
        artifacts: &mut Artifacts,
    ) -> Outcome {
        if let Some(reason) = live.machine.host_trouble() {
            return Outcome::Broken { reason };
        }
        let last = live.console.last_line();
        match ending {
            Ending::Deadline | Ending::Hang => {
                self.diagnose(live, None, artifacts);
                let waited = Duration::from_millis(self.spec.machine.boot_timeout_ms).as_secs_f32();
                let (reason, cure) = match last {
                    None => (
                        format!(
                            "the guest printed nothing and its agent did not answer within {waited} s"
                        ),
                        "is the kernel built for this machine, with CONFIG_PVH or as a bzImage, and with \
                         CONFIG_SERIAL_8250_CONSOLE? A slow host needs a larger boot_timeout",
                    ),
                    Some(line) => (
                        format!(
                            "the agent did not answer within {waited} s; the console ends with: {line}"
                        ),
                        "does the kernel have CONFIG_VIRTIO_PCI and CONFIG_VIRTIO_CONSOLE, built in or as \
                         modules, and CONFIG_BLK_DEV_INITRD? A slow host needs a larger boot_timeout",
                    ),
                };
                self.warn(format!("machine {} did not come up: {cure}", live.number));
                Outcome::Broken { reason }
            }
            // Before the agent's hello the machine's end is no test's doing; the last line is the best explanation.
            Ending::Gone(Gone::ByGuest(how)) => {
                let line = last.unwrap_or_else(|| "it printed nothing".to_owned());
                Outcome::Broken { reason: format!("the guest ended while booting ({how}): {line}") }
            }
            other => judge_ending(other)
                .unwrap_or_else(|| Outcome::Broken { reason: "the boot ended oddly".to_owned() }),
        }
    }

    /// Passes on what a sign says to people. Terminal output is the stage's own business.
    pub(super) fn tell_sign(
        &mut self,
        live: &mut Live,
        stage: Option<&StageName>,
        now: Duration,
        sign: Sign,
    ) {
        match sign {
            Sign::Console(bytes) => live.console.take(self.sink, stage, now, &bytes),
            Sign::Splat(splat) => {
                live.console.finish(self.sink, stage);
                let (vm, stage) = (live.number, stage.cloned());
                tell(self.sink, Happening::SplatSeen { vm, stage, splat });
            }
            _ => {}
        }
    }

    /// Has the kernel and the processors say where they stand, for whoever reads about the hang.
    fn diagnose(&mut self, live: &mut Live, stage: Option<&StageName>, artifacts: &mut Artifacts) {
        let registers = live.machine.diagnose();
        let until = self.now() + DIAGNOSIS;
        let mut quiet_since = self.now();
        loop {
            let now = self.now();
            // Questioning has waited for the answer; only what is on its way is left.
            if now >= until || now >= quiet_since + Duration::from_millis(300) {
                break;
            }
            match live.machine.next(Duration::from_millis(100)) {
                Some(News::Sign(Sign::Gone(_))) => break,
                Some(News::Sign(sign)) => {
                    if let Sign::Console(bytes) = &sign {
                        quiet_since = self.now();
                        artifacts.log(bytes);
                    }
                    // Reports that our own question provoked (a task dump looks like trouble) are not told.
                    if matches!(sign, Sign::Console(_)) {
                        self.tell_sign(live, stage, now, sign);
                    }
                }
                Some(News::Ready { .. } | News::Failed(_) | News::Told(..)) | None => {}
            }
        }
        if let Some(text) = registers {
            let path = format!("machines/{}/registers.txt", live.number);
            self.save_text(stage, &path, &text);
        }
    }

    fn save_text(&mut self, stage: Option<&StageName>, path: &str, text: &str) {
        let file = self.spec.folder.join(path);
        let written =
            file.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&file, text));
        match written {
            Ok(()) => {
                let bytes = text.len() as u64;
                let (stage, path) = (stage.cloned(), path.to_owned());
                tell(self.sink, Happening::ArtifactSaved { stage, path, bytes });
            }
            Err(error) => self.warn(format!("cannot write {}: {error}", file.display())),
        }
    }

    fn tell_saved(&mut self, stage: Option<&StageName>, saved: &[Saved]) {
        for file in saved {
            let relative = file.path.strip_prefix(&self.spec.folder).unwrap_or(&file.path);
            let path = relative.to_string_lossy().into_owned();
            let (stage, bytes) = (stage.cloned(), file.bytes);
            tell(self.sink, Happening::ArtifactSaved { stage, path, bytes });
        }
    }
}

/// The kernel log of one stage, written as it comes.
#[derive(Debug, Default)]
struct Artifacts {
    dmesg: Option<(File, u64)>,
    /// Why the log stopped early.
    trouble: Option<std::io::Error>,
}

impl Artifacts {
    fn open(folder: &Path) -> std::io::Result<Artifacts> {
        fs::create_dir_all(folder)?;
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(folder.join("dmesg.txt"))?;
        Ok(Artifacts { dmesg: Some((file, 0)), trouble: None })
    }

    fn log(&mut self, bytes: &[u8]) {
        let Some((file, written)) = &mut self.dmesg else { return };
        let room = usize::try_from(DMESG_BYTES - *written).unwrap_or(0).min(bytes.len());
        match file.write_all(&bytes[..room]) {
            Ok(()) => *written += room as u64,
            Err(error) => {
                // A full disk costs the rest of this log; the console's own file may still have it.
                self.dmesg = None;
                self.trouble = Some(error);
            }
        }
    }
}

/// One stage on one machine.
pub(super) struct StageRun<'r, 'a> {
    job: &'r mut Execution<'a>,
    stage: &'r Stage,
    live: &'r mut Live,
    terminal: Flood,
    last_words: Vec<u8>,
    artifacts: Artifacts,
}

impl<'r, 'a> StageRun<'r, 'a> {
    pub(super) fn new(
        job: &'r mut Execution<'a>,
        stage: &'r Stage,
        live: &'r mut Live,
    ) -> StageRun<'r, 'a> {
        live.console.finish(job.sink, None);
        let folder = job.spec.folder.join("stages").join(stage.name.as_str());
        let artifacts = Artifacts::open(&folder).unwrap_or_else(|error| {
            job.warn(format!("cannot keep the kernel log in {}: {error}", folder.display()));
            Artifacts::default()
        });
        let terminal = Flood::new(BUDGET);
        StageRun { job, stage, live, terminal, last_words: Vec::new(), artifacts }
    }

    pub(super) fn run(mut self) -> Aftermath {
        let environment: Vec<(String, String)> =
            self.job.spec.environment.iter().chain(&self.stage.environment).cloned().collect();
        if let Err(reason) = self.live.machine.launch(self.stage, &environment) {
            let reason = format!("cannot start the stage: {reason}");
            return Aftermath { outcome: Outcome::Broken { reason }, machine_usable: false };
        }
        let timeout = Duration::from_millis(self.stage.timeout_ms);
        let hang = Duration::from_millis(self.job.spec.machine.hang_timeout_ms);
        let mut watch = Watch::new(self.job.now(), Limits::of(timeout, hang));
        let ending = self.await_ending(&mut watch);
        let aftermath = self.settle(&mut watch, ending);
        self.flush();
        aftermath
    }

    /// `None` when a person wants everything to end at once.
    fn await_ending(&mut self, watch: &mut Watch) -> Option<Ending> {
        loop {
            let now = self.job.now();
            self.pass_on(now);
            if let Some(ending) = watch.ending(now) {
                return Some(ending);
            }
            if self.job.stop.urgency() == Urgency::Kill {
                return None;
            }
            let mut patience = watch.wake_at().saturating_sub(now).min(GLANCE);
            if let Some(due) = self.terminal.due_at() {
                patience = patience.min(due.saturating_sub(now));
            }
            if let Some(News::Sign(sign)) = self.live.machine.next(patience) {
                self.take(watch, sign);
            }
        }
    }

    fn take(&mut self, watch: &mut Watch, sign: Sign) {
        let now = self.job.now();
        watch.see(now, &sign);
        match &sign {
            Sign::Terminal(bytes) => {
                keep_tail(&mut self.last_words, bytes);
                if let Some(text) = self.terminal.push(now, bytes) {
                    let event = output(Some(&self.stage.name), OutputSource::Terminal, text);
                    tell(self.job.sink, event);
                }
            }
            Sign::Console(bytes) => self.artifacts.log(bytes),
            _ => {}
        }
        self.job.tell_sign(self.live, Some(&self.stage.name), now, sign);
    }

    fn pass_on(&mut self, now: Duration) {
        if let Some(text) = self.terminal.due(now) {
            tell(self.job.sink, output(Some(&self.stage.name), OutputSource::Terminal, text));
        }
        self.live.console.due(self.job.sink, Some(&self.stage.name), now);
    }

    /// Everything after the ending was seen: the outcome, evidence, artifacts.
    fn settle(&mut self, watch: &mut Watch, ending: Option<Ending>) -> Aftermath {
        let Some(ending) = ending else {
            let outcome = Outcome::NotRun { reason: "interrupted".to_owned() };
            return Aftermath { outcome, machine_usable: false };
        };
        let Ending::Exited(exit) = ending else {
            if let Some(reason) = self.live.machine.host_trouble() {
                return Aftermath { outcome: Outcome::Broken { reason }, machine_usable: false };
            }
            if matches!(ending, Ending::Hang | Ending::Deadline) {
                let stage = self.stage.name.clone();
                self.job.diagnose(self.live, Some(&stage), &mut self.artifacts);
            }
            if ending == Ending::Deadline {
                // The guest still listens: what it left behind may tell why it took so long.
                self.live.machine.cancel();
                self.bring_artifacts();
            }
            let outcome = judge_ending(&ending)
                .unwrap_or_else(|| Outcome::Broken { reason: "the stage ended oddly".to_owned() });
            self.keep_disks(&outcome);
            return Aftermath { outcome, machine_usable: false };
        };
        let Suite::Script { completion_file, .. } = &self.stage.suite;
        let mut missing = None;
        let mut broken = None;
        if let Some(path) = completion_file {
            match self.live.machine.exists(path) {
                Ok(true) => {}
                Ok(false) => missing = Some(path.as_str()),
                Err(reason) => broken = Some(format!("cannot look for {path}: {reason}")),
            }
        }
        let words = last_line(&self.last_words).unwrap_or_default();
        let mut outcome = match broken {
            Some(reason) => Outcome::Broken { reason },
            None => judge_exit(exit, &words, missing),
        };
        let mut machine_usable = !matches!(outcome, Outcome::Broken { .. });
        self.bring_artifacts();
        // A crash while the artifacts came is still this stage's: nobody else was at work.
        let until = self.job.now() + LAST_LOOK;
        while self.job.now() < until
            && let Some(News::Sign(sign)) = self.live.machine.next(Duration::ZERO)
        {
            self.take(watch, sign);
        }
        if let Some(crashed) = self.late_crash(watch) {
            outcome = crashed;
            machine_usable = false;
        }
        if let Some(reason) = self.doubt(&outcome) {
            outcome = Outcome::Broken { reason };
            machine_usable = false;
        }
        self.keep_disks(&outcome);
        Aftermath { outcome, machine_usable }
    }

    /// Why an outcome does not count: the host had a part in it. Of a root disk that could not be read, no outcome counts. That
    /// requests to other disks failed excuses a failure; a stage that passed in spite of it is told of.
    fn doubt(&mut self, outcome: &Outcome) -> Option<String> {
        if outcome.counts_against_the_kernel() {
            return self.live.machine.host_trouble();
        }
        if !matches!(outcome, Outcome::Passed | Outcome::Skipped { .. }) {
            return None;
        }
        if let Some(reason) = self.live.machine.misread() {
            return Some(format!("{}, but {reason}", outcome.word()));
        }
        let trouble = self.live.machine.host_trouble()?;
        // It stays true for the stages to come.
        if self.live.doubted.as_ref() != Some(&trouble) {
            let (stage, word) = (&self.stage.name, outcome.word());
            self.job.warn(format!("{stage} {word} although {trouble}"));
            self.live.doubted = Some(trouble);
        }
        None
    }

    /// Waits for the rest of a crash that began after the script's exit, if one did.
    fn late_crash(&mut self, watch: &mut Watch) -> Option<Outcome> {
        loop {
            let now = self.job.now();
            match watch.ending(now) {
                Some(Ending::Exited(_)) => return None,
                Some(ending) => return judge_ending(&ending),
                None => {}
            }
            let patience = watch.wake_at().saturating_sub(now);
            if let Some(News::Sign(sign)) = self.live.machine.next(patience) {
                self.take(watch, sign);
            }
        }
    }

    fn stage_folder(&self) -> PathBuf {
        self.job.spec.folder.join("stages").join(self.stage.name.as_str())
    }

    fn bring_artifacts(&mut self) {
        if self.stage.artifacts.is_empty() {
            return;
        }
        let into = self.stage_folder().join("artifacts");
        match self.live.machine.pull(&self.stage.artifacts, &into) {
            Ok(pulled) => {
                let stage = self.stage.name.clone();
                self.job.tell_saved(Some(&stage), &pulled.saved);
                for trouble in pulled.troubles.iter().take(10) {
                    self.job.warn(format!("artifacts of {stage}: {trouble}"));
                }
                if pulled.truncated {
                    self.job.warn(format!("stage {stage} has more artifacts than may be kept"));
                }
            }
            Err(reason) => {
                self.job
                    .warn(format!("cannot bring the artifacts of {}: {reason}", self.stage.name));
            }
        }
    }

    /// Keeps the disks as they are now, where that was asked for.
    fn keep_disks(&mut self, outcome: &Outcome) {
        let wanted = match self.job.spec.keep_disks {
            KeepDisks::Never => false,
            KeepDisks::Failed => worth_keeping(outcome),
            KeepDisks::Always => true,
        };
        if !wanted || self.job.spec.disks.is_empty() {
            return;
        }
        let stage = self.stage.name.clone();
        match self.live.machine.keep_disks(&stage) {
            Ok(kept) => {
                for Kept { serial, snapshot } in kept {
                    let stage = stage.clone();
                    tell(self.job.sink, Happening::DiskKept { stage, serial, snapshot });
                }
            }
            Err(reason) => self.job.warn(format!("cannot keep the disks of {stage}: {reason}")),
        }
    }

    fn flush(&mut self) {
        let stage = self.stage.name.clone();
        if let Some(text) = self.terminal.finish() {
            tell(self.job.sink, output(Some(&stage), OutputSource::Terminal, text));
        }
        let dropped = self.terminal.dropped();
        if dropped > 0 {
            self.job.warn(format!("output of {stage} dropped: {dropped} bytes"));
        }
        self.live.console.finish(self.job.sink, Some(&stage));
        if let Some(error) = self.artifacts.trouble.take() {
            self.job.warn(format!("the kernel log of {stage} is incomplete: {error}"));
        }
        if let Some((_, bytes)) = self.artifacts.dmesg.take() {
            let path = format!("stages/{stage}/dmesg.txt");
            tell(self.job.sink, Happening::ArtifactSaved { stage: Some(stage), path, bytes });
        }
    }
}

fn worth_keeping(outcome: &Outcome) -> bool {
    outcome.counts_against_the_kernel() || matches!(outcome, Outcome::Broken { .. })
}
