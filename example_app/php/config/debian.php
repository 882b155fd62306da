<?php
// vendor/autoload.php where Symfony comes from Debian's packages and not from Composer.

foreach (['Bundle/FrameworkBundle', 'Component/Console', 'Component/Yaml'] as $package) {
    require_once "/usr/share/php/Symfony/$package/autoload.php";
}
spl_autoload_register(function (string $class): void {
    $path = __DIR__ . '/../src/' . strtr(substr($class, 4), '\\', '/') . '.php';
    if (str_starts_with($class, 'App\\') && is_file($path)) {
        require $path;
    }
});
