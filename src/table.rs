//! Tables: as lines for people, as CSV for programs.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

/// Lines of columns with a head. The first column and columns with words stand to the left, numbers to the right.
pub(crate) fn lines<R: AsRef<[String]>>(head: &[&str], rows: &[R]) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(head.to_vec()).add_rows(rows.iter().map(AsRef::as_ref));
    let is_word = |cell: &String| cell.starts_with(|c: char| c != '-' && !c.is_ascii_digit());
    for (k, column) in table.column_iter_mut().enumerate().skip(1) {
        if !rows.iter().any(|row| row.as_ref().get(k).is_some_and(is_word)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Lines of values with commas between them, after a line of names.
///
/// # Errors
/// Rows of another length than the head.
pub(crate) fn csv<R: AsRef<[String]>>(head: &[&str], rows: &[R]) -> Result<String, csv::Error> {
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record(head)?;
    rows.iter().try_for_each(|row| out.write_record(row.as_ref()))?;
    let bytes = out.into_inner().map_err(|e| csv::Error::from(e.into_error()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: [&str; 3]) -> [String; 3] {
        cells.map(str::to_owned)
    }

    #[test]
    fn words_stand_to_the_left_and_numbers_to_the_right() {
        let rows = [row(["a", "9", "yes"]), row(["long", "10.5 %", "no"]), row(["ü", "-", ""])];
        let wanted = " name  number  sure\n a          9  yes\n long  10.5 %  no\n ü          -\n";
        assert_eq!(lines(&["name", "number", "sure"], &rows), wanted);
        assert_eq!(lines::<[String; 1]>(&["name", "sure"], &[]), " name  sure\n");
    }

    #[test]
    fn csv_quotes_what_has_commas_and_refuses_rows_that_do_not_fit() {
        assert_eq!(csv(&["a", "b", "c"], &[row(["1", "x, y", "\"z\""])]).unwrap(), "a,b,c\n1,\"x, y\",\"\"\"z\"\"\"\n");
        assert!(csv(&["a", "b"], &[row(["1", "2", "3"])]).is_err());
    }
}
