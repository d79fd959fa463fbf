//! The picture, as text and as a browser shows it.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::Node;
use super::cdp::Browser;
use super::forest::Forest;
use super::forest::tests::nodes;
use super::svg::{MOST, draw};

fn picture(named: &[(String, String)]) -> String {
    let named: Vec<_> = named.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    draw(&Forest::of(nodes(&named)))
}

/// A base with a long row of snapshots, clones of some, and names nobody should have chosen.
fn pool() -> Vec<Node> {
    let mut named: Vec<(String, String)> = vec![("base@day-1".into(), String::new())];
    for n in 2..=40 {
        named.push((format!("base@day-{n}"), format!("base@day-{}", n - 1)));
    }
    named.push(("base".into(), "base@day-40".into()));
    for n in 1..=3 {
        named.push((format!("vm-{n}"), "base@day-12".into()));
    }
    named.push(("vm-4@crash".into(), "base@day-12".into()));
    named.push(("vm-4".into(), "vm-4@crash".into()));
    named.push(("again".into(), "vm-4@crash".into()));
    for name in [
        "</text><script>window.pwned = 1</script>",
        "\" onload=\"window.pwned = 2",
        "&lt;b&gt;<![CDATA[",
        "\u{202e}gnp.\u{ffff}",
        "漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字",
        "a name that is a good deal longer than anybody would want to read in a picture",
    ] {
        named.push((name.into(), String::new()));
    }
    let named: Vec<_> = named.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let mut nodes = nodes(&named);
    nodes.iter_mut().filter(|node| node.name == "vm-2").for_each(|node| node.served = true);
    nodes
}

fn open(browser: &mut Browser, name: &str, svg: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(format!("{name}.svg"));
    std::fs::write(&file, svg).unwrap();
    browser.open(&file);
    assert_eq!(browser.eval("document.documentElement.localName"), json!("svg"), "{name}");
    folder
}

#[test]
fn a_small_picture_is_what_it_was() {
    let named = [("base@monday", ""), ("base", "base@monday"), ("vm & <b>", "base@monday")];
    let svg = draw(&Forest::of(nodes(&named)));
    // Of the style, its meaning is looked at in a browser.
    let (before, rest) = svg.split_once("<style>").unwrap();
    let (_, after) = rest.split_once("</style>").unwrap();
    insta::assert_snapshot!(format!("{before}\n{after}").replace("><", ">\n<"), @r#"
        <svg xmlns="http://www.w3.org/2000/svg" width="322" height="104" viewBox="0 0 322 104" role="img" aria-label="Disks and snapshots">
        <title>Disks and snapshots</title>
        <rect class="back" width="322" height="104" stroke="none">
        </rect>
        <path d="M143 55H143C161 55 161 33 179 33">
        </path>
        <path d="M143 55H143C161 55 161 77 179 77">
        </path>
        <g class="snapshot">
        <title>base@monday: 10G, 3.0 MiB used</title>
        <rect x="16" y="38" width="127" height="34" rx="5">
        </rect>
        <text x="26" y="53">base@monday</text>
        <text class="small" x="26" y="66">10G, 3.0 MiB used</text>
        </g>
        <g class="disk">
        <title>vm &amp; &lt;b&gt;: 10G, 3.0 MiB used</title>
        <rect x="179" y="16" width="127" height="34" rx="5">
        </rect>
        <text x="189" y="31">vm &amp; &lt;b&gt;</text>
        <text class="small" x="189" y="44">10G, 3.0 MiB used</text>
        </g>
        <g class="disk">
        <title>base: 10G, 3.0 MiB used</title>
        <rect x="179" y="60" width="127" height="34" rx="5">
        </rect>
        <text x="189" y="75">base</text>
        <text class="small" x="189" y="88">10G, 3.0 MiB used</text>
        </g>
        </svg>
    "#);
}

#[test]
fn nothing_but_letters_comes_of_a_hostile_name_in_a_browser() {
    let svg = draw(&Forest::of(pool()));
    let mut browser = Browser::start();
    let _folder = open(&mut browser, "hostile", &svg);
    assert_eq!(browser.eval("window.pwned === undefined"), json!(true));
    let planted = "document.querySelectorAll('script, b, image, foreignObject, parsererror, [onload]').length";
    assert_eq!(browser.eval(planted), json!(0));
    let shown = "[...document.querySelectorAll('text')].some((text) => text.textContent.startsWith('</text><script>'))";
    assert_eq!(browser.eval(shown), json!(true));
    assert!(svg.contains("\\u{202e}gnp.\u{fffd}"), "no other direction, and nothing XML forbids");
    let complaints: Vec<&Value> =
        browser.events.iter().filter(|event| event["method"] == "Log.entryAdded").collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn the_picture_is_legible_in_light_and_in_dark() {
    let svg = draw(&Forest::of(pool()));
    let mut browser = Browser::start();
    let mut backs = Vec::new();
    for scheme in ["light", "dark"] {
        let feature = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        browser.call("Emulation.setEmulatedMedia", feature);
        let _folder = open(&mut browser, scheme, &svg);
        // Each text inside its box, no box over another, and all of it inside the picture.
        let outside = "[...document.querySelectorAll('g')].flatMap((g) => {
            const box = g.querySelector('rect').getBBox();
            return [...g.querySelectorAll('text')].filter((text) => {
                const t = text.getBBox();
                return t.x < box.x || t.y < box.y || t.x + t.width > box.x + box.width
                    || t.y + t.height > box.y + box.height;
            }).map((text) => text.textContent);
        })";
        assert_eq!(browser.eval(outside), json!([]), "{scheme}");
        let over = "(() => {
            const boxes = [...document.querySelectorAll('g rect')].map((rect) => rect.getBBox());
            const hit = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width
                && a.y < b.y + b.height && b.y < a.y + a.height;
            const back = document.querySelector('.back').getBBox();
            const inside = boxes.every((b) => b.x >= 0 && b.y >= 0
                && b.x + b.width <= back.width && b.y + b.height <= back.height);
            return inside && !boxes.some((a, n) => boxes.slice(n + 1).some((b) => hit(a, b)));
        })()";
        assert_eq!(browser.eval(over), json!(true), "{scheme}");
        let colour = "(() => {
            const light = (selector, key) => {
                const [r, g, b] = getComputedStyle(document.querySelector(selector))[key].match(/\\d+/g).map(Number);
                const part = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
                return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
            };
            const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            const text = light('text', 'fill'), small = light('.small', 'fill');
            return [light('.back', 'fill'), contrast(text, light('.snapshot rect', 'fill')),
                contrast(text, light('.disk rect', 'fill')), contrast(small, light('.disk rect', 'fill'))];
        })()";
        let measured = browser.eval(colour);
        let numbers: Vec<f64> =
            measured.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect();
        assert!(numbers[1] > 7.0 && numbers[2] > 7.0 && numbers[3] > 4.5, "{scheme}: {measured}");
        backs.push(numbers[0]);
        if let Some(folder) = std::env::var_os("KILN_TEST_PICTURES") {
            browser.screenshot(&PathBuf::from(folder).join(format!("tree-{scheme}.png")));
        }
    }
    assert!(backs[0] > 0.8 && backs[1] < 0.1, "{backs:?}");
}

#[test]
fn a_row_of_snapshots_is_folded_between_its_ends() {
    let svg = draw(&Forest::of(pool()));
    assert_eq!(svg.matches("class=\"fold\"").count(), 2, "before the clones and after");
    assert!(svg.contains("26 snapshots, base@day-14 to base@day-39"), "{svg}");
    for kept in ["base@day-1:", "base@day-12:", "base@day-40:"] {
        assert!(svg.contains(&format!("<title>{kept}")), "{kept}");
    }
}

#[test]
fn a_browser_shows_ten_thousand_and_is_told_of_the_rest() {
    let mut named: Vec<(String, String)> = vec![("d0@s".into(), String::new())];
    // Clones of clones, and a wide fan.
    for n in 1..200 {
        named.push((format!("d{n}@s"), format!("d{}@s", n - 1)));
        named.push((format!("d{n}"), format!("d{n}@s")));
    }
    named.extend((0..11_000).map(|n| (format!("vm-{n}"), "d100@s".into())));
    let svg = picture(&named);
    assert_eq!(svg.matches("<g ").count(), MOST);
    assert!(svg.contains(&format!("and {} more", named.len() - MOST)));
    assert!(svg.len() < 6 << 20, "{}", svg.len());
    let mut browser = Browser::start();
    let _folder = open(&mut browser, "many", &svg);
    assert_eq!(browser.eval("document.querySelectorAll('g').length"), json!(MOST));
}
