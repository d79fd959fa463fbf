//! The text exposition format, version 0.0.4. The metrics and their meaning are listed in `docs/formats/metrics.md`, which a
//! test compares with what is written here.

use std::fmt::Write as _;

use crate::measured::{Histogram, OperationFigures};
use crate::reply::{DiskFigures, PoolFigures};

/// What a response with this text says it is.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Disks told of one by one, those that are served first: a reader keeps a series for each of their metrics.
const DISKS: usize = 1000;
/// Bounds of latency buckets, as powers of two of nanoseconds: 1 microsecond to 17 seconds.
const BOUNDS: std::ops::RangeInclusive<usize> = 10..=34;

/// All metrics of a pool and of what was done with its disks, as text.
pub fn exposition(pool: &PoolFigures, disks: &[DiskFigures]) -> String {
    let mut text = Text(String::new());
    let mut plain = |name: &str, kind: &str, help: &str, value: u64| {
        text.family(name, kind, help);
        text.sample(name, &[], value);
    };
    let (counter, gauge) = ("counter", "gauge");
    plain("kiln_pool_size_bytes", gauge, "All space of the pool.", pool.space.total);
    let help = "Space that disks, snapshots and their maps take.";
    plain("kiln_pool_used_bytes", gauge, help, pool.space.used);
    let help = "Space that disks can still be given.";
    plain("kiln_pool_available_bytes", gauge, help, pool.space.available);
    let help = "Disks and snapshots that were removed and whose space is not all free yet.";
    plain("kiln_pool_reclaiming", gauge, help, pool.reclaiming);
    let help = "Space that becomes free with the next checkpoint.";
    plain("kiln_pool_waiting_bytes", gauge, help, pool.waiting);
    let help = "Space that became free since disks and snapshots were removed.";
    plain("kiln_pool_reclaimed_bytes_total", counter, help, pool.reclaimed);
    let help = "Memory that parts of maps take.";
    plain("kiln_pool_map_cache_bytes", gauge, help, pool.cached);
    let help = "Parts of maps that were found in memory.";
    plain("kiln_pool_map_cache_hits_total", counter, help, pool.cache_hits);
    let help = "Parts of maps that had to be read.";
    plain("kiln_pool_map_cache_misses_total", counter, help, pool.cache_misses);
    let help = "Flushes that were asked for, of all disks whose flushes are durable.";
    plain("kiln_pool_flushes_total", counter, help, pool.flushes);
    let help =
        "Batches in which flushes were written to the log; fewer than flushes when some share one.";
    plain("kiln_pool_flush_batches_total", counter, help, pool.batches);
    let help = "Syncs of the pool's file or device.";
    plain("kiln_pool_syncs_total", counter, help, pool.syncs);
    let help = "Times the log was emptied into the maps.";
    plain("kiln_pool_checkpoints_total", counter, help, pool.checkpoints);
    let name = "kiln_pool_standstill_seconds_total";
    text.family(name, counter, "Time for which no map could be changed, for a checkpoint.");
    text.sample(name, &[], Seconds(pool.standstill));
    let name = "kiln_pool_written_bytes_total";
    text.family(name, counter, "Bytes written to the pool, by what they are.");
    for (part, bytes) in [
        ("data", pool.data_written),
        ("log", pool.log_written),
        ("metadata", pool.metadata_written),
    ] {
        text.sample(name, &[("part", part)], bytes);
    }
    let mut plain = |name: &str, kind: &str, help: &str, value: u64| {
        text.family(name, kind, help);
        text.sample(name, &[], value);
    };
    let help = "Time since the pool was opened.";
    plain("kiln_pool_open_seconds", gauge, help, pool.uptime);
    let help = "Programs that are connected to the pool's owner.";
    plain("kiln_pool_clients", gauge, help, pool.connections);

    let shown = told(disks);
    let help =
        "Disks that were in use and have no metrics of their own here, because there are too many.";
    let left_out = u64::try_from(disks.len() - shown.len()).unwrap_or(u64::MAX);
    plain("kiln_disks_left_out", gauge, help, left_out);
    text.of_disks(&shown);
    text.0
}

/// Those with metrics of their own, by name.
fn told(disks: &[DiskFigures]) -> Vec<&DiskFigures> {
    let mut shown: Vec<&DiskFigures> = disks.iter().collect();
    shown.sort_by(|a, b| (!a.served, &a.name).cmp(&(!b.served, &b.name)));
    shown.truncate(DISKS);
    shown.sort_by(|a, b| a.name.cmp(&b.name));
    // Two series of one name would make a reader refuse all of it.
    shown.dedup_by(|a, b| a.name == b.name);
    shown
}

fn operations(disk: &DiskFigures) -> [(&'static str, &OperationFigures); 4] {
    let DiskFigures { read, write, discard, flush, .. } = disk;
    [("read", read), ("write", write), ("discard", discard), ("flush", flush)]
}

/// A metric's name, its help, and where its value is.
type Family<T> = (&'static str, &'static str, fn(&T) -> u64);

struct Text(String);

impl Text {
    /// Begins a metric, all of whose samples follow.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _infallible = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            self.0.push_str(if at == 0 { "{" } else { "," });
            self.0.push_str(label);
            self.0.push_str("=\"");
            for c in text.chars() {
                match c {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    c => self.0.push(c),
                }
            }
            self.0.push('"');
        }
        self.0.push_str(if labels.is_empty() { " " } else { "} " });
        let _infallible = writeln!(self.0, "{value}");
    }

    fn of_disks(&mut self, disks: &[&DiskFigures]) {
        let gauges: [Family<DiskFigures>; 3] = [
            ("kiln_disk_served", "Whether somebody is served with the disk.", |disk| {
                u64::from(disk.served)
            }),
            ("kiln_disk_size_bytes", "How large the disk looks.", |disk| disk.size),
            (
                "kiln_disk_referenced_bytes",
                "How much of the disk is mapped, its own or shared.",
                |disk| disk.referenced,
            ),
        ];
        for (name, help, of) in gauges {
            self.family(name, "gauge", help);
            for disk in disks {
                self.sample(name, &[("disk", &disk.name)], of(disk));
            }
        }
        let counters: [Family<OperationFigures>; 2] = [
            ("kiln_disk_bytes_total", "Bytes that operations were about.", |of| of.bytes),
            ("kiln_disk_errors_total", "Operations that failed.", |of| of.failed),
        ];
        for (name, help, of) in counters {
            self.family(name, "counter", help);
            for disk in disks {
                for (operation, figures) in operations(disk) {
                    let labels = [("disk", disk.name.as_str()), ("operation", operation)];
                    self.sample(name, &labels, of(figures));
                }
            }
        }
        let name = "kiln_disk_operation_seconds";
        self.family(name, "histogram", "How long operations took, those that failed too.");
        for disk in disks {
            for (operation, figures) in operations(disk) {
                self.histogram(name, (&disk.name, operation), figures);
            }
        }
    }

    fn histogram(&mut self, name: &str, (disk, operation): (&str, &str), of: &OperationFigures) {
        let Histogram(counts) = &of.latency;
        let labels = [("disk", disk), ("operation", operation)];
        let below = |bound: usize| counts.iter().take(bound + 1).sum::<u64>();
        for bound in BOUNDS {
            let le = Seconds(1 << bound).to_string();
            let labels = [labels[0], labels[1], ("le", &le)];
            self.sample(&format!("{name}_bucket"), &labels, below(bound));
        }
        // Counted while others count: the parts and the whole must agree all the same.
        let all: u64 = counts.iter().sum();
        self.sample(&format!("{name}_bucket"), &[labels[0], labels[1], ("le", "+Inf")], all);
        self.sample(&format!("{name}_sum"), &labels, Seconds(of.nanoseconds));
        self.sample(&format!("{name}_count"), &labels, all);
    }
}

/// Nanoseconds, written as seconds, exactly.
struct Seconds(u64);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, part) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        if part == 0 {
            return write!(f, "{whole}");
        }
        write!(f, "{whole}.{}", format!("{part:09}").trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::super::strict::{Kind, parse};
    use super::*;
    use crate::reply::Space;

    fn busy(name: &str) -> DiskFigures {
        let mut latency = vec![0; 36];
        (latency[3], latency[12], latency[13], latency[35]) = (1, 5, 2, 1);
        let write = OperationFigures {
            count: 9,
            failed: 1,
            bytes: 36_864,
            nanoseconds: 61_000_123_456,
            latency: Histogram(latency),
        };
        DiskFigures { name: name.to_owned(), served: true, write, ..DiskFigures::default() }
    }

    #[test]
    fn a_strict_reader_understands_every_line() {
        let space = Space { total: 1 << 40, used: 5, available: 6 };
        let pool = PoolFigures { space, flushes: 12, batches: 3, ..PoolFigures::default() };
        let hostile = "a\"} 1\nkiln_evil{x=\"\\";
        let text = exposition(&pool, &[busy("base"), busy(hostile), busy("base@monday")]);
        let families = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let value = |name: &str, labels: &[(&str, &str)]| {
            families.iter().find_map(|family| family.value(name, labels)).unwrap()
        };
        assert_eq!(
            value("kiln_pool_size_bytes", &[]),
            f64::from(1_u32 << 20) * f64::from(1_u32 << 20)
        );
        assert_eq!(value("kiln_pool_flushes_total", &[]), 12.0);
        let write = |le: &'static str| [("disk", "base"), ("operation", "write"), ("le", le)];
        let bucket = |le| value("kiln_disk_operation_seconds_bucket", &write(le));
        assert_eq!(
            [bucket("0.000001024"), bucket("0.000004096"), bucket("0.000008192")],
            [1.0, 6.0, 8.0]
        );
        assert_eq!([bucket("17.179869184"), bucket("+Inf")], [8.0, 9.0]);
        let sum =
            value("kiln_disk_operation_seconds_sum", &[("disk", hostile), ("operation", "write")]);
        assert!((sum - 61.000_123_456).abs() < 1e-9, "{sum}");
        for family in &families {
            let total = family.name.ends_with("_total");
            assert_eq!(family.kind == Kind::Counter, total, "{}", family.name);
            assert!(!family.help.is_empty() && family.help.ends_with('.'), "{}", family.name);
        }
    }

    #[test]
    fn more_disks_than_a_reader_wants_are_counted_and_those_served_come_first() {
        let mut disks: Vec<DiskFigures> = (0..1500).map(|n| busy(&format!("d{n:04}"))).collect();
        disks[..600].iter_mut().for_each(|disk| disk.served = false);
        disks.push(busy("d1499"));
        let text = exposition(&PoolFigures::default(), &disks);
        let families = parse(&text).unwrap();
        let served = families.iter().find(|family| family.name == "kiln_disk_served").unwrap();
        assert!(served.samples.len() <= DISKS, "{}", served.samples.len());
        assert!(served.value("kiln_disk_served", &[("disk", "d1499")]).is_some());
        assert!(served.value("kiln_disk_served", &[("disk", "d0599")]).is_none());
    }

    #[test]
    fn an_idle_pool_is_understood_too() {
        let families = parse(&exposition(&PoolFigures::default(), &[])).unwrap();
        let of_disks = families.iter().filter(|family| family.name.starts_with("kiln_disk_"));
        assert!(of_disks.map(|family| family.samples.len()).sum::<usize>() == 0);
    }

    #[test]
    fn the_page_lists_every_metric_and_no_other() {
        let page = include_str!("../../../../docs/formats/metrics.md");
        let listed = page.lines().filter_map(|line| line.strip_prefix("| `kiln_"));
        let listed: Vec<String> = listed
            .filter_map(|rest| rest.split_once('`'))
            .map(|(name, _)| format!("kiln_{name}"))
            .collect();
        let text = exposition(&PoolFigures::default(), &[busy("x")]);
        let written: Vec<String> =
            parse(&text).unwrap().into_iter().map(|family| family.name).collect();
        assert_eq!(listed, written);
    }
}
