<?php

namespace App;

final class InvalidInvoice extends \DomainException
{
}
