//! The site in a real browser, from `file://`.

use std::path::PathBuf;

use kiln_history::site;
use kiln_model::outcome::{Outcome, TimeoutCause};
use serde_json::{Value, json};

use crate::cdp::Browser;
use crate::fixture::{HOSTILE, Place, failed, id};

fn artifacts() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("site");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Nothing but files (and what pages carry in themselves) was asked for, and no page broke its own rules.
fn assert_only_files(browser: &Browser) {
    let requests: Vec<&str> = browser
        .events
        .iter()
        .filter(|event| event["method"] == "Network.requestWillBeSent")
        .filter_map(|event| event["params"]["request"]["url"].as_str())
        .collect();
    assert!(requests.iter().any(|url| url.ends_with("assets/kiln.css")), "{requests:?}");
    for url in requests {
        let inert = ["file:", "data:", "blob:", "about:"].iter().any(|kind| url.starts_with(kind));
        assert!(inert, "a page asked for {url}");
    }
    let complaints: Vec<&Value> = browser
        .events
        .iter()
        .filter(|event| {
            event["method"] == "Runtime.exceptionThrown"
                || (event["method"] == "Log.entryAdded"
                    && event["params"]["entry"]["level"] == "error")
        })
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn a_recording_plays_from_a_file_to_its_last_line() {
    assert!(site::has_player(), "the player is not embedded: run `make player` and build again");
    let place = Place::new();
    place.record_hostile("20260102-000000-0002");
    site::build(&place.runs(), None, &place.site()).unwrap();
    let mut browser = Browser::start();
    browser.open(&place.site().join("runs/20260102-000000-0002/stage-1.html"));
    browser.until("document.getElementById('player').dataset.state === 'ready'");
    browser.until("document.querySelector('#player .ap-term, #player .ap-terminal')");
    browser.eval(
        "document.querySelector('#player .ap-overlay-start, #player .ap-playback-button').click()",
    );
    browser.until("document.getElementById('player').dataset.state === 'ended'");
    browser.until(
        "document.getElementById('player').innerText.includes('the last line of the recording')",
    );
    browser.screenshot(&artifacts().join("stage.png"));
    assert_eq!(browser.eval("window.pwned === undefined"), json!(true));
    assert_only_files(&browser);
}

#[test]
fn a_script_in_a_log_is_shown_as_text_and_never_run() {
    let place = Place::new();
    place.record_hostile("20260102-000000-0002");
    site::build(&place.runs(), None, &place.site()).unwrap();
    let mut browser = Browser::start();
    let run = place.site().join("runs/20260102-000000-0002");
    let pages = ["stage-1.html", "index.html", "../../index.html", "../index.html"];
    for page in pages {
        browser.open(&run.join(page));
        assert_eq!(browser.eval("window.pwned === undefined"), json!(true), "{page}");
        assert_ne!(browser.eval("document.title"), json!("pwned"), "{page}");
        let planted = "document.querySelectorAll('img[onerror], svg[onload], b b').length";
        assert_eq!(browser.eval(planted), json!(0), "{page}");
        // Whoever finds a hole in the templates meets the policy.
        let injected = "(() => { const s = document.createElement('script'); s.textContent = 'window.pwned = 9';
            document.body.append(s); return window.pwned === undefined; })()";
        assert_eq!(browser.eval(injected), json!(true), "{page}");
    }
    // The policy's complaint about each of them; who answers may be quicker than who complains.
    let is_complaint = |event: &Value| event["method"] == "Log.entryAdded";
    while browser.events.iter().filter(|event| is_complaint(event)).count() < pages.len() {
        browser.eval("0");
    }
    browser.events.retain(|event| !is_complaint(event));
    browser.open(&run.join("stage-1.html"));
    let shown = "[...document.querySelectorAll('pre')].filter((pre) => pre.textContent.includes('<script>window.pwned = 1')).length";
    let count = browser.eval(shown).as_u64().unwrap();
    assert!(count >= 3, "kernel report, terminal and kernel log show it as text, not {count}");
    assert!(HOSTILE.contains("<script>window.pwned = 1"));
    assert_only_files(&browser);
}

#[test]
fn the_pages_hold_together_in_light_dark_and_on_a_phone() {
    let place = Place::new();
    let hang = Outcome::TimedOut { cause: TimeoutCause::Hang };
    let crash = Outcome::Crashed { signature: "panic: sysrq triggered crash".into() };
    for n in 1..=14 {
        let third = if n % 4 == 0 { failed() } else { Outcome::Passed };
        let second = if n < 14 { Outcome::Passed } else { crash.clone() };
        let run = format!("202601{n:02}-000000-00{n:02}");
        let kernel = format!("kernel-{n}");
        let skipped = Outcome::Skipped { reason: "no quota tools".into() };
        let outcomes = [Outcome::Passed, second, third, hang.clone(), skipped];
        place.record(&run, "btrfs-raid5-scrub", &kernel, &outcomes);
        if n > 10 {
            let run = format!("202601{n:02}-010000-01{n:02}");
            place.record(&run, "xfs-smoke", &kernel, &[Outcome::Passed, Outcome::Passed]);
        }
    }
    site::build(&place.runs(), None, &place.site()).unwrap();
    let mut browser = Browser::start();
    let run = site::run_page(&place.site(), &id("20260114-000000-0014"));
    let index = place.site().join("index.html");
    for (look, scheme, width) in
        [("light", "light", 1100), ("dark", "dark", 1100), ("phone", "dark", 390)]
    {
        let size = json!({"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": false});
        browser.call("Emulation.setDeviceMetricsOverride", size);
        let feature = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        browser.call("Emulation.setEmulatedMedia", feature);
        for (name, page) in [("index", &index), ("run", &run)] {
            browser.open(page);
            let overflow = "document.documentElement.scrollWidth - innerWidth";
            assert!(
                browser.eval(overflow).as_i64().unwrap() <= 0,
                "{name} is wider than a window of {width}"
            );
            browser.screenshot(&artifacts().join(format!("{name}-{look}.png")));
        }
    }
    // By keyboard alone: `n` goes to the first failure.
    let key = |kind: &str| json!({"type": kind, "key": "n", "text": "n"});
    browser.call("Input.dispatchKeyEvent", key("keyDown"));
    browser.call("Input.dispatchKeyEvent", key("keyUp"));
    assert_eq!(browser.eval("document.activeElement.id"), json!("failure-stage-2"));
    let nameless = "[...document.querySelectorAll('a, button')].filter((e) => !e.textContent.trim() && !e.getAttribute('aria-label') && !e.querySelector('img[alt]')).length";
    assert_eq!(browser.eval(nameless), json!(0), "every link and button has a name");
    assert_only_files(&browser);
}
