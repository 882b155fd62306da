import express from 'express';

export function web({ invoices }) {
  const app = express();
  app.use(express.json());
  app.post('/invoices', async (request, response) => {
    response.status(201).json({ id: invoices.create(request.body) });
  });
  app.get('/invoices/:id', async (request, response) => {
    const invoice = invoices.find(request.params.id);
    response.status(invoice ? 200 : 404).json(invoice ?? { error: 'no such invoice' });
  });
  return app;
}
