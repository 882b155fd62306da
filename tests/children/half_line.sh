# Dies in the middle of its reply.
read -r request
printf '{"status":"ok","resu'
exit 1
