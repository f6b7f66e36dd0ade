//! The results as a page that fits into docs/performance.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::speed::{SHAPES, pieces};

/// The page: the machine, the golden tests, the products, the speeds, and what failed.
pub(super) fn page(results: &BTreeMap<String, Value>) -> String {
    let mut text = String::new();
    let machine = results.get("machine");
    let card = machine.and_then(|found| found["card"].as_str());
    // Writing to a string cannot fail.
    let _ = writeln!(text, "Card: {}.", card.unwrap_or("unknown"));
    let torch = results.get("torch").filter(|found| found["ok"] == true);
    let version = torch.and_then(|found| found["version"].as_str());
    let version = version.and_then(|version| version.split_whitespace().next());
    let _ = match version {
        Some(version) => writeln!(text, "PyTorch {version} on the same card."),
        None => writeln!(text, "No PyTorch: the rate of products is the limit."),
    };
    golden(&mut text, results);
    products(&mut text, results);
    speeds(&mut text, results);
    let mut failed = results
        .iter()
        .filter(|(_, found)| found["ok"] != true)
        .peekable();
    if failed.peek().is_some() {
        text.push_str("\nFailed:\n\n");
    }
    for (part, found) in failed {
        let error = found["error"].as_str().unwrap_or("no message");
        let error = error.lines().collect::<Vec<_>>().join(" ");
        let _ = writeln!(text, "- `{part}`: {error}");
    }
    text
}

fn golden(text: &mut String, results: &BTreeMap<String, Value>) {
    text.push_str("\n| golden tests | passed | failed | seconds |\n|---|---:|---|---:|\n");
    for (part, found) in results
        .iter()
        .filter(|(part, _)| part.starts_with("golden/"))
    {
        let failed = found["failed"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let names: Vec<&str> = failed.iter().filter_map(Value::as_str).collect();
        let names = match (names.is_empty(), found["ok"] == true) {
            (true, true) => "none".to_owned(),
            (true, false) => "cut off".to_owned(),
            (false, _) => names.join(", "),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {names} | {:.0} |",
            part["golden/".len()..].replace('/', ", "),
            found["passed"].as_u64().unwrap_or(0),
            found["took"].as_f64().unwrap_or(0.0)
        );
    }
}

/// Floating-point operations a second of a product, in `TFLOP`.
fn rate(results: &BTreeMap<String, Value>, precision: &str, by: &str) -> Option<f64> {
    results
        .iter()
        .find_map(|(part, found)| match pieces(part)? {
            [_, _, "product", _, n, of, _, whose] if of == precision && whose == by => {
                let n: f64 = n.parse().ok()?;
                Some(2.0 * n.powi(3) / found["seconds"].as_f64()? / 1e12)
            }
            _ => None,
        })
}

fn products(text: &mut String, results: &BTreeMap<String, Value>) {
    text.push_str("\n| product, TFLOP/s | ours | PyTorch |\n|---|---:|---:|\n");
    for precision in ["bf16", "f32"] {
        let cell =
            |by| rate(results, precision, by).map_or("–".to_owned(), |rate| format!("{rate:.3}"));
        let _ = writeln!(
            text,
            "| {precision} | {} | {} |",
            cell("ours"),
            cell("optimised")
        );
    }
}

fn speeds(text: &mut String, results: &BTreeMap<String, Value>) {
    text.push_str(
        "\n| backend | burn | model | work | batch | type | past tasks | ours, images/s | ours, MiB | against PyTorch | \
         against compiled | share of the product rate |\n|---|---|---|---|---:|---|---:|---:|---:|---:|---:|---:|\n",
    );
    for (part, found) in results {
        let Some(
            [
                device,
                variant,
                model,
                mode,
                batch,
                precision,
                n_past,
                "ours",
            ],
        ) = pieces(part)
        else {
            continue;
        };
        let shape = SHAPES.iter().find(|shape| shape.name == model);
        let (Some(shape), Some(ours)) = (shape, found["images_per_second"].as_f64()) else {
            continue;
        };
        // A program that ended early is among the failures, with what it measured in the results.
        if found["ok"] != true {
            continue;
        }
        // PyTorch is measured once, beside the first variant of the first backend.
        let theirs = |by: &str| {
            results
                .iter()
                .find_map(|(part, found)| match pieces(part)? {
                    [_, _, a, b, c, d, e, whose]
                        if [a, b, c, d, e] == [model, mode, batch, precision, n_past]
                            && whose == by =>
                    {
                        found["images_per_second"].as_f64()
                    }
                    _ => None,
                })
        };
        let ratio =
            |by| theirs(by).map_or("–".to_owned(), |theirs| format!("{:.2}", ours / theirs));
        let most = ["ours", "optimised"].map(|by| rate(results, precision, by).unwrap_or(0.0));
        let most = most[0].max(most[1]);
        let share = match most > 0.0 {
            true => format!("{:.2}", ours * shape.flop(mode == "train") / (most * 1e12)),
            false => "–".to_owned(),
        };
        let _ = writeln!(
            text,
            "| {device} | {variant} | {model} | {mode} | {batch} | {precision} | {n_past} | {ours:.1} | {:.0} | {} | {} | \
             {share} |",
            found["peak_mib"].as_f64().unwrap_or(0.0),
            ratio("optimised"),
            ratio("compiled"),
        );
    }
    text.push_str(
        "\nRatios above 1: ours is faster. The share counts the products of the frozen model, against the faster of the two \
         measured products.\n",
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_page_has_ratios_shares_and_failures() {
        let mut results = BTreeMap::new();
        let mut put = |part: &str, value: Value| results.insert(part.to_owned(), value);
        put("machine", json!({ "ok": true, "card": "a card" }));
        put("torch", json!({ "ok": true, "version": "2.11 True" }));
        put(
            "golden/cuda/plain",
            json!({ "ok": false, "passed": 3, "failed": ["core::a"], "took": 7.0, "error": "it failed: x\ny" }),
        );
        let speed = |images: f64| json!({ "ok": true, "images_per_second": images, "seconds": 0.1, "peak_mib": 5.0 });
        put(
            "speed/cuda/plain/vit-b/train/128/bf16/20/ours",
            speed(100.0),
        );
        put("speed/cuda/both/vit-b/train/128/bf16/20/ours", speed(150.0));
        put(
            "speed/cuda/plain/vit-b/train/128/bf16/20/optimised",
            speed(200.0),
        );
        put(
            "speed/cuda/plain/product/train/1000/bf16/0/ours",
            json!({ "ok": true, "seconds": 1e-4 }),
        );
        let page = page(&results);
        for line in [
            "Card: a card.",
            "PyTorch 2.11 on the same card.",
            "| cuda, plain | 3 | core::a | 7 |",
            "| bf16 | 20.000 | – |",
            "| cuda | plain | vit-b | train | 128 | bf16 | 20 | 100.0 | 5 | 0.50 | – | 0.36 |",
            "| cuda | both | vit-b | train | 128 | bf16 | 20 | 150.0 | 5 | 0.75 | – | 0.54 |",
            "- `golden/cuda/plain`: it failed: x y",
        ] {
            assert!(page.contains(line), "{line} in\n{page}");
        }
    }
}
