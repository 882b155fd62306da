<?php

namespace App\Controller;

use App\Invoices;
use Symfony\Bundle\FrameworkBundle\Controller\AbstractController;
use Symfony\Component\HttpFoundation\JsonResponse;

final class InvoiceController extends AbstractController
{
    public function __invoke(Invoices $invoices, int $id): JsonResponse
    {
        $invoice = $invoices->find($id);
        return new JsonResponse($invoice ?? ['error' => 'no such invoice'], $invoice ? 200 : 404);
    }
}
