//! A grid of images in one PNG.

use std::path::Path;

use sdlora_image::Image;
use sdlora_train::files::write_file;

/// Pixels between images and around them.
const BORDER: usize = 2;
/// Gray of the border, in every channel.
const BORDER_VALUE: u8 = 128;
/// Largest width and height of a cell; larger images are made smaller by leaving out pixels.
const MAX_CELL: usize = 128;

/// Writes one row of images for each item of `rows`.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write(rows: &[Vec<Image>], path: &Path) -> anyhow::Result<()> {
    let side = |of: fn(&Image) -> usize| rows.iter().flatten().map(of).max().unwrap_or(1);
    let cell = [side(Image::width), side(Image::height)].map(|side| side.clamp(1, MAX_CELL));
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = n_columns * (cell[0] + BORDER) + BORDER;
    let height = rows.len() * (cell[1] + BORDER) + BORDER;
    let mut sheet = vec![BORDER_VALUE; width * height * 3];
    for (row_idx, row) in rows.iter().enumerate() {
        for (column_idx, image) in row.iter().enumerate() {
            let left = BORDER + column_idx * (cell[0] + BORDER);
            let top = BORDER + row_idx * (cell[1] + BORDER);
            paste(image, &mut sheet[(top * width + left) * 3..], width, cell);
        }
    }
    let png = sdlora_image::encode_png(width, height, &sheet)?;
    Ok(write_file(path, &png)?)
}

/// Copies an image to the start of `sheet`, made smaller to fit a cell.
fn paste(image: &Image, sheet: &mut [u8], sheet_width: usize, cell: [usize; 2]) {
    let (w, h) = (image.width(), image.height());
    let shrink = (w as f64 / cell[0] as f64)
        .max(h as f64 / cell[1] as f64)
        .max(1.0);
    let out = [w, h].map(|side| ((side as f64 / shrink) as usize).max(1));
    for y in 0..out[1] {
        for x in 0..out[0] {
            let from = (y * h / out[1] * w + x * w / out[0]) * image.channels();
            let to = (y * sheet_width + x) * 3;
            for channel in 0..3 {
                let channel_from = channel.min(image.channels() - 1);
                sheet[to + channel] = image.data()[from + channel_from];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_lie_inside_their_cells() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sheet.png");
        let gray = Image::new(2, 1, 1, vec![10, 20]).unwrap();
        let large = Image::new(300, 2, 3, vec![7; 1800]).unwrap();
        write(&[vec![gray.clone(), gray], vec![large]], &path).unwrap();
        let sheet = Image::decode(&std::fs::read(path).unwrap(), "sheet").unwrap();
        assert_eq!((sheet.width(), sheet.height()), (2 * 130 + 2, 2 * 4 + 2));
        let at = |x: usize, y: usize| sheet.data()[(y * sheet.width() + x) * 3];
        assert_eq!(
            [at(1, 1), at(2, 2), at(3, 2), at(132, 2), at(133, 2)],
            [128, 10, 20, 10, 20]
        );
        assert_eq!([at(2, 6), at(129, 6), at(130, 6)], [7, 7, 128]);
    }
}
