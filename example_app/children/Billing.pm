package Billing;
use strict;
use warnings;
use JSON::PP ();

# What happens to one row of ../data/invoices.csv. Money is counted in cents.
sub charge {
    my ($row) = @_;
    my $net   = $row->{quantity} * $row->{unit_cents};
    my $tax   = int(($net * $row->{vat_percent} + 50) / 100);
    my $total = $net + $tax;
    my $first = $total - int($total / $row->{instalments}) * ($row->{instalments} - 1);
    my $ok    = iban_ok($row->{iban});
    my $risk  = ($ok ? 0 : 60) + ($row->{iban} =~ /^\Q$row->{country}\E/ ? 0 : 20)
        + ($total < 1_000_000 ? 0 : 15);
    return {
        invoice => $row->{invoice}, customer => $row->{customer}, tax_cents => $tax,
        total_cents => $total, total => format_money($total, $row->{currency}),
        first_instalment_cents => $first, risk => $risk, pid => $$,
        iban_ok => $ok ? JSON::PP::true : JSON::PP::false,
    };
}

sub iban_ok {
    my ($iban) = @_;
    my $digits = substr($iban, 4) . substr($iban, 0, 4);
    $digits =~ s/([A-Z])/ord($1) - 55/ge;
    my $rest = 0;    # digit by digit: the whole number would not fit
    $rest = ($rest * 10 + $_) % 97 for split //, $digits;
    return $rest == 1;
}

sub format_money {
    my ($cents, $currency) = @_;
    my $whole = int($cents / 100);
    1 while $whole =~ s/^(\d+)(\d{3})/$1,$2/;
    return sprintf '%s.%02d %s', $whole, $cents % 100, $currency;
}

1;
