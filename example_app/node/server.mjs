import { boot } from './src/shop.mjs';
import { web } from './src/web.mjs';

const server = web(boot()).listen(Number(process.env.PORT ?? 3000), '127.0.0.1', (error) => {
  if (error) throw error;
  console.log(`http://127.0.0.1:${server.address().port}`);
});
