<?php
declare(strict_types=1);

// What happens to one row of ../data/invoices.csv. Money is counted in cents.
function charge(array $row): array
{
    $net = $row['quantity'] * $row['unit_cents'];
    $tax = intdiv($net * $row['vat_percent'] + 50, 100);
    $total = $net + $tax;
    $first = $total - intdiv($total, $row['instalments']) * ($row['instalments'] - 1);
    $iban_ok = iban_ok($row['iban']);
    $risk = ($iban_ok ? 0 : 60) + (str_starts_with($row['iban'], $row['country']) ? 0 : 20)
        + ($total < 1_000_000 ? 0 : 15);
    return [
        'invoice' => $row['invoice'], 'customer' => $row['customer'], 'tax_cents' => $tax,
        'total_cents' => $total, 'total' => format_money($total, $row['currency']),
        'first_instalment_cents' => $first, 'iban_ok' => $iban_ok, 'risk' => $risk,
        'pid' => getmypid(),
    ];
}

function iban_ok(string $iban): bool
{
    $rest = 0; // character by character: the whole number would not fit
    foreach (str_split(substr($iban, 4) . substr($iban, 0, 4)) as $char) {
        $value = intval($char, 36);
        $rest = ($rest * ($value > 9 ? 100 : 10) + $value) % 97;
    }
    return $rest === 1;
}

function format_money(int $cents, string $currency): string
{
    return sprintf('%s.%02d %s', number_format(intdiv($cents, 100)), $cents % 100, $currency);
}
