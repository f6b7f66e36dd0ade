//! The page that a model has on a hub: what it is, from which data, how good, and how to use it.

use std::fmt::Write as _;
use std::path::Path;

use sdlora_vit::VitConfig;

use super::FinishedRun;
use super::history::{History, licence, manifest};
use crate::error::TrainError;
use crate::files::write_file;

/// Name of the page.
pub(super) const FILE: &str = "README.md";

/// By which a later export knows the page of an earlier one.
pub(super) const MARK: &str = "exported by [sdlora](";

/// The program whose folder the page is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Library {
    Timm,
    Transformers,
    Peft,
}

impl Library {
    /// Its name in the header of the page.
    fn name(self) -> &'static str {
        match self {
            Self::Timm => "timm",
            Self::Transformers => "transformers",
            Self::Peft => "peft",
        }
    }

    /// Lines of Python that name the class of an image with the folder at `PATH`.
    fn code(self) -> &'static str {
        match self {
            Self::Timm => {
                r#"import timm, torch
from PIL import Image

model = timm.create_model("local-dir:PATH", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
image = Image.open("image.png").convert("MODE")
label = model(transform(image).unsqueeze(0)).argmax().item()
print(model.pretrained_cfg["label_names"][label])
"#
            }
            Self::Transformers => {
                r#"from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("PATH").eval()
processor = AutoImageProcessor.from_pretrained("PATH")
image = Image.open("image.png").convert("RGB")
logits = model(**processor(image, return_tensors="pt")).logits
print(model.config.id2label[logits.argmax().item()])
"#
            }
            Self::Peft => {
                r#"from peft import AutoPeftModel
from PIL import Image
from transformers import AutoImageProcessor

model = AutoPeftModel.from_pretrained("PATH").eval()
processor = AutoImageProcessor.from_pretrained("PATH")
image = Image.open("image.png").convert("RGB")
logits = model(**processor(image, return_tensors="pt")).logits
print(model.config.id2label[logits.argmax().item()])
"#
            }
        }
    }
}

/// Writes the page into a folder of a library.
pub(super) fn write(run: &FinishedRun, library: Library, out: &Path) -> Result<(), TrainError> {
    write_file(&out.join(FILE), text(run, library).as_bytes())
}

fn text(run: &FinishedRun, library: Library) -> String {
    let history = History::read(&run.folder);
    let config = &run.config;
    let mut page = header(run, library);
    let c = run.vit.config();
    let mut line = |text: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(page, "{text}");
    };
    line(format!(
        "# {} classes of {}, learned by {}\n",
        run.n_classes(),
        config.dataset,
        config.method.name
    ));
    let n_tasks = history.tasks.len();
    let in_tasks = match n_tasks {
        0 => String::new(),
        1 => ", in one task".to_owned(),
        n => format!(", in {n} tasks one after another, without keeping images of earlier ones"),
    };
    line(format!(
        "{} that learned {} classes{in_tasks}.\nTrained and {MARK}https://github.com/sdlora/sdlora) {}.\n",
        backbone_in_words(c),
        run.n_classes(),
        history
            .version
            .as_deref()
            .unwrap_or(env!("CARGO_PKG_VERSION")),
    ));
    line("## Method\n".into());
    let head = config
        .head
        .as_ref()
        .map_or("that of the method", |head| head.name.as_str());
    line(format!(
        "- Method: `{}`, head: `{head}`",
        config.method.name
    ));
    line(format!(
        "- Pre-trained weights: `{}`",
        weights(&config.backbone.weights)
    ));
    let rule = serde_json::to_value(&config.optimizer).unwrap_or_default();
    let rule = rule["rule"].as_str().unwrap_or("unknown");
    line(format!(
        "- Training: {} epochs a task, {} images a step, optimiser `{}` at rate {}, seed {}\n",
        config.n_epochs, config.batch_size, rule, config.optimizer.lr, config.seed
    ));
    line("## Data\n".into());
    match manifest(&config.dataset) {
        Some((source, of_data, citation)) => line(format!(
            "- `{}`: {source}\n- Licence of the data: {of_data}\n- Citation: {citation}\n",
            config.dataset
        )),
        None => line(format!("- `{}`\n", config.dataset)),
    }
    if let Some(rows) = tasks(&history) {
        line(rows);
    }
    line("## Results\n".into());
    let half = match config.hold_out {
        0 => "the test images".to_owned(),
        n => format!("{n} training images of each class, which were held out"),
    };
    match history.summary() {
        Some(summary) => {
            line(format!(
                "Measured by sdlora on {half}, with its own preparation of images.\n"
            ));
            line("| metric | % |\n|---|---:|".into());
            for metric in summary.metrics() {
                if let Some(value) = metric.value {
                    line(format!("| {} | {:.2} |", metric.label, 100.0 * value));
                }
            }
            line(String::new());
        }
        None => line("The folder of the run has no results.\n".into()),
    }
    line("## Use\n".into());
    let mode = if c.n_channels == 1 { "L" } else { "RGB" };
    line(format!(
        "```python\n{}```\n",
        library.code().replace("MODE", mode)
    ));
    line(match library {
        // `local-dir:` is for folders.
        Library::Timm => "`PATH` is the folder of this page.\n".into(),
        _ => "`PATH` is the folder of this page, or its name on the Hub.\n".into(),
    });
    line("## Licence\n".into());
    line(format!("{}.", licence(run)));
    page
}

/// What the Hub reads: fields between two lines of dashes.
fn header(run: &FinishedRun, library: Library) -> String {
    let mut header = String::from("---\n");
    if let Some(licence) = &run.licence {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-.+".contains(c);
        // The Hub knows identifiers in small letters, and has fields for others.
        let _ = match licence.chars().all(is_name) {
            true => writeln!(header, "license: {}", licence.to_lowercase()),
            false => writeln!(header, "license: other\nlicense_name: {}", quoted(licence)),
        };
    }
    let _ = writeln!(
        header,
        "library_name: {}\npipeline_tag: image-classification\ntags:\n- image-classification\n- continual-learning\n- {}\n---\n",
        library.name(),
        quoted(&run.config.method.name)
    );
    header
}

/// A text of YAML: JSON is one.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn backbone_in_words(c: &VitConfig) -> String {
    format!(
        "A vision transformer of {} blocks and width {}, for images of {} pixels in patches of {},",
        c.depth, c.d_model, c.image_size, c.patch_size
    )
}

/// The weights as the plan names them, without folders of the machine that trained.
fn weights(path: &Path) -> String {
    let shown = match path.is_absolute() {
        true => path.file_name().map(Path::new).unwrap_or(path),
        false => path,
    };
    shown.display().to_string()
}

/// A table of the tasks, where the run kept a log.
fn tasks(history: &History) -> Option<String> {
    let last = history
        .matrix
        .as_ref()
        .and_then(|matrix| matrix.last_seen());
    if history.tasks.is_empty() {
        return None;
    }
    let mut table = String::from(
        "| task | new classes | training images | final accuracy, % |\n|---:|---:|---:|---:|\n",
    );
    for (i, task) in history.tasks.iter().enumerate() {
        let accuracy = last.and_then(|row| row.get(i));
        let accuracy = accuracy.map_or("–".to_owned(), |a| format!("{:.1}", 100.0 * a));
        let _ = writeln!(
            table,
            "| {i} | {} | {} | {accuracy} |",
            task.n_new_classes, task.n_images
        );
    }
    Some(table)
}
