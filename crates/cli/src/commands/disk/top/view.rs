//! A sample in lines, as many and as long as there is room for.

use std::time::Duration;

use unicode_width::UnicodeWidthStr as _;

use super::sample::{DiskRates, Rates, Sample};
use crate::hostile;
use crate::reporter::rows::{Paint, mebibytes};
use crate::terminal::Tone;

/// Columns of the longest name shown whole.
const WIDEST: usize = 28;

/// At most so many lines, none of more columns than there are.
pub(super) fn lines(
    sample: &Sample,
    (rows, columns): (usize, usize),
    paint: Paint<'_>,
) -> Vec<String> {
    let mut plain: Vec<(Tone, String)> = summary(sample).map(|line| (Tone::Plain, line)).into();
    let names: Vec<_> = sample.disks.iter().map(|disk| hostile::line(&disk.name)).collect();
    let names: Vec<_> = names.iter().map(|name| hostile::cut(name, WIDEST)).collect();
    let widest = names.iter().map(|name| name.width()).max().unwrap_or(0).max(4);
    let heading = format!(
        "{:widest$} {:>7} {:>7} {:>6} {:>6} {:>8} {:>7} {:>6} {:>6} {:>8} {:>6} {:>7} {:>11}",
        "DISK",
        "READ/s",
        "MB/s",
        "p50",
        "p99",
        "WRITE/s",
        "MB/s",
        "p50",
        "p99",
        "FLUSH/s",
        "p99",
        "ERR/s",
        "USED"
    );
    plain.push((Tone::Bold, heading));
    let room = rows.saturating_sub(plain.len() + 1);
    for (disk, name) in sample.disks.iter().zip(&names).take(room) {
        let padding = " ".repeat(widest.saturating_sub(name.width()));
        let tone = if disk.served { Tone::Plain } else { Tone::Dim };
        plain.push((tone, format!("{name}{padding} {}", figures(disk))));
    }
    if sample.disks.is_empty() {
        plain.push((Tone::Dim, "nobody is served with a disk yet".to_owned()));
    } else if sample.disks.len() > room {
        plain.push((Tone::Dim, format!("and {} more", sample.disks.len() - room)));
    }
    let fitting = plain.iter().take(rows);
    fitting.map(|(tone, line)| paint(*tone, &hostile::cut(line.trim_end(), columns))).collect()
}

fn summary(sample: &Sample) -> [String; 2] {
    let (pool, rates) = (&sample.pool, &sample.pool_rates);
    let debt = match pool.reclaiming {
        0 => "nothing to free".to_owned(),
        1 => "1 removed to free".to_owned(),
        many => format!("{many} removed to free"),
    };
    let each = match rates.batches > 0.0 {
        true => format!(" in {} batches/s", number(rates.batches)),
        false => String::new(),
    };
    let hits = match rates.hits {
        Some(share) => format!("{:.1} % of {} lookups/s", share * 100.0, number(rates.lookups)),
        None => "no lookups".to_owned(),
    };
    [
        format!(
            "space {} used, {} available, {debt}; {} clients",
            mebibytes(pool.space.used),
            mebibytes(pool.space.available),
            pool.connections
        ),
        format!(
            "flushes {}/s{each}, {} syncs/s; maps {} in memory, {hits}",
            number(rates.flushes),
            number(rates.syncs),
            mebibytes(pool.cached)
        ),
    ]
}

fn figures(disk: &DiskRates) -> String {
    let DiskRates { read, write, discard, flush, .. } = disk;
    let both = |of: &Rates| {
        let megabytes = of.bytes_per_second / 1e6;
        format!("{megabytes:>7.1} {:>6} {:>6}", time(of.p50), time(of.p99))
    };
    let errors = [read, write, discard, flush].map(|of| of.errors_per_second).iter().sum();
    format!(
        "{:>7} {} {:>8} {} {:>8} {:>6} {:>7} {:>11}",
        number(read.per_second),
        both(read),
        number(write.per_second),
        both(write),
        number(flush.per_second),
        time(flush.p99),
        number(errors),
        mebibytes(disk.referenced)
    )
}

/// `0`, `0.5`, `123`, `12.3k`, `1.2M`.
fn number(value: f64) -> String {
    match value {
        v if v < 0.05 => "0".to_owned(),
        v if v < 9.95 => format!("{v:.1}"),
        v if v < 9_999.5 => format!("{v:.0}"),
        v if v < 999_950.0 => format!("{:.1}k", v / 1e3),
        v => format!("{:.1}M", v / 1e6),
    }
}

/// At most so long: `8µs`, `1.0ms`, `2.1s`.
fn time(time: Option<Duration>) -> String {
    let Some(time) = time else { return "-".to_owned() };
    let micros = time.as_secs_f64() * 1e6;
    match micros {
        v if v < 1.0 => "<1µs".to_owned(),
        v if v < 999.5 => format!("{v:.0}µs"),
        v if v < 99_950.0 => format!("{:.1}ms", v / 1e3),
        v if v < 999_500.0 => format!("{:.0}ms", v / 1e3),
        v => format!("{:.1}s", v / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::tests::sample;
    use super::*;

    fn plain(_: Tone, text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn a_sample_is_a_table_under_two_lines_about_the_pool() {
        insta::assert_snapshot!(lines(&sample(), (24, 200), &plain).join("\n"), @r"
        space 2048.0 MiB used, 50176.0 MiB available, 3 removed to free; 2 clients
        flushes 1200/s in 300 batches/s, 301 syncs/s; maps 31.0 MiB in memory, 99.9 % of 1000 lookups/s
        DISK       READ/s    MB/s    p50    p99  WRITE/s    MB/s    p50    p99  FLUSH/s    p99   ERR/s        USED
        v\x1b[2Jm   12.3k    50.6   66µs   66µs        0     0.0      -      -        0      -       0     3.0 MiB
        base          100     0.4   16µs   16µs        0     0.0      -      -        0      -       0     3.0 MiB
        ");
    }

    #[test]
    fn there_are_never_more_lines_or_columns_than_the_terminal_has() {
        for rows in 1..8 {
            for columns in [1, 40, 79] {
                let drawn = lines(&sample(), (rows, columns), &plain);
                assert!(drawn.len() <= rows && drawn.iter().all(|line| line.width() <= columns));
            }
        }
    }

    #[test]
    fn numbers_and_times_fit_their_columns() {
        let shown: Vec<_> = [0.0, 0.51, 9.96, 9999.4, 9_999.6, 1_234_567.0].map(number).into();
        assert_eq!(shown, ["0", "0.5", "10", "9999", "10.0k", "1.2M"]);
        let times =
            [500, 1 << 13, 1 << 20, 1 << 27, 1 << 34].map(|n| time(Some(Duration::from_nanos(n))));
        assert_eq!(times, ["<1µs", "8µs", "1.0ms", "134ms", "17.2s"]);
    }
}
