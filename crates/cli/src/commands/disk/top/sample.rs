//! What happened between two looks at a pool's counters.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kiln_store::{DiskFigures, Histogram, OperationFigures, PoolFigures};
use serde_json::{Value, json};

/// The counters at one time.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) at: Instant,
    pub(super) pool: PoolFigures,
    pub(super) disks: Vec<DiskFigures>,
}

/// What happened between two readings.
#[derive(Debug)]
pub(super) struct Sample {
    /// As it is now.
    pub(super) pool: PoolFigures,
    pub(super) seconds: f64,
    pub(super) pool_rates: PoolRates,
    pub(super) disks: Vec<DiskRates>,
}

/// Per second.
#[derive(Debug)]
pub(super) struct PoolRates {
    pub(super) flushes: f64,
    pub(super) batches: f64,
    pub(super) syncs: f64,
    pub(super) lookups: f64,
    /// The share of lookups that needed no reading.
    pub(super) hits: Option<f64>,
}

#[derive(Debug)]
pub(super) struct DiskRates {
    pub(super) name: String,
    pub(super) served: bool,
    pub(super) size: u64,
    pub(super) referenced: u64,
    pub(super) read: Rates,
    pub(super) write: Rates,
    pub(super) discard: Rates,
    pub(super) flush: Rates,
}

/// Of one kind of operation on one disk.
#[derive(Debug, Default)]
pub(super) struct Rates {
    pub(super) per_second: f64,
    pub(super) bytes_per_second: f64,
    pub(super) errors_per_second: f64,
    pub(super) p50: Option<Duration>,
    pub(super) p99: Option<Duration>,
}

impl Sample {
    /// What happened from one reading to the next. Where the pool was opened anew between them, from its opening on.
    pub(super) fn between(before: &Reading, after: &Reading) -> Sample {
        let same = before.pool.pid == after.pool.pid && before.pool.uptime <= after.pool.uptime;
        let (nothing, nowhere) = (PoolFigures::default(), Vec::new());
        let (old, old_disks) =
            if same { (&before.pool, &before.disks) } else { (&nothing, &nowhere) };
        let seconds = after.at.saturating_duration_since(before.at).as_secs_f64().max(1e-3);
        let now = &after.pool;
        let rate = |old: u64, new: u64| count(new.saturating_sub(old)) / seconds;
        let (hits, misses) =
            (rate(old.cache_hits, now.cache_hits), rate(old.cache_misses, now.cache_misses));
        let lookups = hits + misses;
        let pool_rates = PoolRates {
            flushes: rate(old.flushes, now.flushes),
            batches: rate(old.batches, now.batches),
            syncs: rate(old.syncs, now.syncs),
            lookups,
            hits: (lookups > 0.0).then(|| hits / lookups),
        };
        let known: HashMap<&str, &DiskFigures> =
            old_disks.iter().map(|disk| (disk.name.as_str(), disk)).collect();
        let unknown = DiskFigures::default();
        let disk = |new: &DiskFigures| {
            let old = known.get(new.name.as_str()).copied().unwrap_or(&unknown);
            DiskRates {
                name: new.name.clone(),
                served: new.served,
                size: new.size,
                referenced: new.referenced,
                read: Rates::between(&old.read, &new.read, seconds),
                write: Rates::between(&old.write, &new.write, seconds),
                discard: Rates::between(&old.discard, &new.discard, seconds),
                flush: Rates::between(&old.flush, &new.flush, seconds),
            }
        };
        let mut disks: Vec<DiskRates> = after.disks.iter().map(disk).collect();
        let busy = |disk: &DiskRates| disk.read.per_second + disk.write.per_second;
        disks.sort_by(|a, b| busy(b).total_cmp(&busy(a)).then_with(|| a.name.cmp(&b.name)));
        Sample { pool: after.pool.clone(), seconds, pool_rates, disks }
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let disk = |disk: &DiskRates| {
            json!({
                "name": disk.name, "served": disk.served, "size": disk.size,
                "referenced": disk.referenced, "read": disk.read.json(), "write": disk.write.json(),
                "discard": disk.discard.json(), "flush": disk.flush.json(),
            })
        };
        let (pool, rates) = (&self.pool, &self.pool_rates);
        json!({
            "seconds": self.seconds,
            "pool": {
                "size": pool.space.total, "used": pool.space.used, "available": pool.space.available,
                "reclaiming": pool.reclaiming, "cached": pool.cached, "clients": pool.connections,
                "lookups_per_second": rates.lookups, "cache_hits": rates.hits,
                "flushes_per_second": rates.flushes, "batches_per_second": rates.batches,
                "syncs_per_second": rates.syncs,
            },
            "disks": self.disks.iter().map(disk).collect::<Vec<_>>(),
        })
    }
}

impl Rates {
    fn between(old: &OperationFigures, new: &OperationFigures, seconds: f64) -> Rates {
        let Histogram(older) = &old.latency;
        let since =
            |(at, new): (usize, &u64)| new.saturating_sub(older.get(at).copied().unwrap_or(0));
        let latency = Histogram(new.latency.0.iter().enumerate().map(since).collect());
        let rate = |old: u64, new: u64| count(new.saturating_sub(old)) / seconds;
        Rates {
            per_second: rate(old.count, new.count),
            bytes_per_second: rate(old.bytes, new.bytes),
            errors_per_second: rate(old.failed, new.failed),
            p50: latency.quantile(0.5),
            p99: latency.quantile(0.99),
        }
    }

    fn json(&self) -> Value {
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        json!({
            "per_second": self.per_second, "bytes_per_second": self.bytes_per_second,
            "errors_per_second": self.errors_per_second, "p50": seconds(self.p50),
            "p99": seconds(self.p99),
        })
    }
}

/// A count to calculate with: exact up to 2^53, as near as can be beyond.
fn count(number: u64) -> f64 {
    let half = |bits: u64| f64::from(u32::try_from(bits & 0xffff_ffff).unwrap_or(u32::MAX));
    half(number >> 32) * 4_294_967_296.0 + half(number)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn reads(name: &str, count: u64, bucket: usize) -> DiskFigures {
        let mut latency = vec![0; 36];
        latency[bucket] = count;
        let latency = Histogram(latency);
        let read = OperationFigures { count, bytes: count * 4096, latency, ..Default::default() };
        DiskFigures {
            name: name.to_owned(),
            served: true,
            size: 10 << 30,
            referenced: 3 << 20,
            read,
            ..Default::default()
        }
    }

    pub(in super::super) fn sample() -> Sample {
        let at = Instant::now();
        let mut pool = PoolFigures { pid: 7, uptime: 100, flushes: 50, ..Default::default() };
        let before = Reading { at, pool: pool.clone(), disks: vec![reads("base", 100, 17)] };
        (pool.uptime, pool.flushes, pool.batches, pool.syncs) = (102, 2450, 600, 602);
        (pool.cache_hits, pool.cache_misses) = (1998, 2);
        (pool.space.total, pool.space.used, pool.space.available) = (51 << 30, 2 << 30, 49 << 30);
        (pool.cached, pool.reclaiming, pool.connections) = (31 << 20, 3, 2);
        let mut base = reads("base", 100, 17);
        (base.read.count, base.read.bytes, base.read.latency.0[14]) = (300, 300 * 4096, 200);
        let hostile = reads("v\u{1b}[2Jm", 24_690, 16);
        Sample::between(
            &before,
            &Reading { at: at + Duration::from_secs(2), pool, disks: vec![base, hostile] },
        )
    }

    #[test]
    fn rates_are_of_what_happened_since_and_the_busiest_comes_first() {
        let sample = sample();
        let names: Vec<_> = sample.disks.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["v\u{1b}[2Jm", "base"]);
        let base = &sample.disks[1].read;
        assert_eq!((base.per_second, base.bytes_per_second), (100.0, 409_600.0));
        assert_eq!(base.p99, Some(Duration::from_nanos(1 << 14)), "older ones were slower");
        assert_eq!((sample.pool_rates.flushes, sample.pool_rates.hits), (1200.0, Some(0.999)));
        assert_eq!(sample.disks[1].write.p50, None);
    }

    #[test]
    fn a_pool_that_was_opened_anew_counts_from_its_opening() {
        let at = Instant::now();
        let reading = |pid, uptime, count| Reading {
            at: at + Duration::from_secs(uptime),
            pool: PoolFigures { pid, uptime, ..Default::default() },
            disks: vec![reads("base", count, 10)],
        };
        let again = Sample::between(&reading(1, 500, 9000), &reading(2, 501, 40));
        assert_eq!(again.disks[0].read.per_second, 40.0);
    }
}
